"""Class folders: `train/<class>/…` and `val/<class>/…`, or one folder of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import Annotated
from train.evals.datasets.folders import folders_in, note_of_others, pictures_below
from train.evals.datasets.found import FoundData, FoundPart, ListedImage

_TRAIN, _VAL = ("train", "training"), ("val", "validation")
_GIVES = frozenset[Annotation]({"class_id"})


def is_class_folders(path: Path) -> bool:
    """Whether `path` holds folders with images in them, or train and val of such folders."""
    folders = _part_folder(path, None, _TRAIN), _part_folder(path, None, _VAL)
    return any(folder is not None and _has_images(folder) for folder in (*folders, path))


def find_classes(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Every image below a class's folder. Classes are the folders of train, or of val where that is all there is.

    Raises:
        InputError: a folder that a setting names is missing, a class of val is not in train, a class has no image.
    """
    train_folder = _part_folder(path, settings.train_list, _TRAIN)
    val_folder = _part_folder(path, settings.val_list, _VAL)
    if val_folder is None:
        if train_folder is not None:
            raise InputError(f"{path} has {train_folder.name}, but no val to be scored; name it by val_list")
        val_folder = path
    classes = tuple(folder.name for folder in folders_in(train_folder or val_folder))
    unknown = [folder.name for folder in folders_in(val_folder) if folder.name not in classes]
    if unknown:
        raise InputError(f"{val_folder / unknown[0]}: a class that {train_folder} has not; no class can be predicted")
    has, notes = needs & _GIVES, list[str]()
    val = _part("val", val_folder, classes, has, notes)
    train = _part("train", train_folder, classes, has, notes) if train_folder else None
    lacks = dict.fromkeys(needs - _GIVES, "class folders hold images alone; give VOC, COCO, CUB or label PNGs")
    return FoundData(root=path, classes=classes, background=None, val=val, train=train, notes=tuple(notes), lacks=lacks)


def _part_folder(path: Path, name: str | None, usual: tuple[str, ...]) -> Path | None:
    if name is not None:
        if not (path / name).is_dir():
            raise InputError(f"{path / name}: no such folder; train_list and val_list name folders of class folders")
        return path / name
    return next((path / one for one in usual if (path / one).is_dir()), None)


def _has_images(folder: Path) -> bool:
    """Whether any of the first folders in it holds an image."""
    return any(pictures_below(one).images for one in folders_in(folder)[:1])


def _part(
    part: DataPart, folder: Path, classes: tuple[str, ...], has: frozenset[Annotation], notes: list[str]
) -> FoundPart:
    entries: list[ListedImage] = []
    loose = [one.name for one in folder.iterdir() if not one.is_dir()]
    notes += note_of_others(tuple(sorted(loose)), where=folder)
    for class_id, class_name in enumerate(classes):
        if not (folder / class_name).is_dir():
            notes.append(f"{part} has no image of class {class_name}")
            continue
        found = pictures_below(folder / class_name)
        notes += note_of_others(found.others, where=folder / class_name)
        if not found.images:
            raise InputError(f"{folder / class_name}: no image in it; a class must have some, or no folder")
        annotate = partial(_annotate, class_id=class_id if "class_id" in has else None)
        for name, path in found.images.items():
            listed = ListedImage(
                name=f"{part}/{class_name}/{name}", image=path, annotate=annotate, facts=class_name.encode()
            )
            entries.append(listed)
    return FoundPart(part=part, title=part, where=folder, entries=tuple(entries), has=has)


def _annotate(image: np.ndarray, _: Sequence[bytes], *, class_id: int | None) -> Annotated:
    return Annotated(image, class_id=class_id)
