"""ImageNet-S (Gao et al. 2022): `validation/<wnid>/x.JPEG` and `validation-segmentation/<wnid>/x.png`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import Annotated
from train.evals.datasets.decode import check_ids, check_same_size, decode_rgb_mask
from train.evals.datasets.folders import folders_in, note_of_others, pictures_below
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.label_maps import labels_of_ids, objects_of_classes
from train.evals.datasets.lists import CLASSES_NAME, read_class_names

VAL_NAME, TRAIN_NAME, MASKS_SUFFIX = "validation", "train-semi", "-segmentation"
IGNORED, OTHER = 1000, 0  # ids of pixels that do not count, and of what is none of the classes
SIZES = (50, 300, 919)
_GIVES = frozenset[Annotation]({"labels", "objects", "class_id"})


def is_imagenet_s(path: Path) -> bool:
    """Whether `path` is a folder as ImageNetS50."""
    return (path / f"{VAL_NAME}{MASKS_SUFFIX}").is_dir()


def find_imagenet_s(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Validation, and train-semi where it is there. Class i is the i-th folder by name; 0 is whatever is none.

    Raises:
        InputError: there are not 50, 300 or 919 class folders and no classes.txt, or a folder is missing.
    """
    val_name, train_name = settings.val_list or VAL_NAME, settings.train_list or TRAIN_NAME
    classes = _classes(path, val_name)
    has, notes = needs & _GIVES, list[str]()
    val = _part("val", path, val_name, classes, has, notes)
    train = None
    if settings.train_list or (path / train_name).is_dir():
        train = _part("train", path, train_name, classes, has & {"labels", "class_id"}, notes)
    return FoundData(
        root=path,
        classes=("other", *classes),
        background=OTHER,
        val=val,
        train=train,
        notes=tuple(notes),
        lacks=dict.fromkeys(needs - _GIVES, "ImageNet-S has no boxes; give VOC or COCO"),
    )


def _classes(path: Path, val_name: str) -> tuple[str, ...]:
    if (path / CLASSES_NAME).exists():
        return read_class_names(path / CLASSES_NAME, least=1, most=IGNORED - 1, order="in the order of ids from 1")
    if not (path / val_name).is_dir():
        raise InputError(f"{path / val_name}: no such folder; ImageNet-S keeps the images of a list there")
    names = tuple(folder.name for folder in folders_in(path / val_name))
    if len(names) not in SIZES:
        raise InputError(
            f"{path / val_name} has {len(names)} class folders, not 50, 300 or 919, so ids cannot be told from "
            f"them; write the names of all classes to {CLASSES_NAME}, one a line, in the order of ids from 1"
        )
    return names


def _part(
    part: DataPart, root: Path, name: str, classes: tuple[str, ...], has: frozenset[Annotation], notes: list[str]
) -> FoundPart:
    folder, masks = root / name, root / f"{name}{MASKS_SUFFIX}"
    needed = [folder, masks] if has & {"labels", "objects"} else [folder]
    missing = next((one for one in needed if not one.is_dir()), None)
    if missing:
        raise InputError(f"{missing}: no such folder; ImageNet-S keeps images and masks in {name} and {masks.name}")
    found = pictures_below(folder)
    notes += note_of_others(found.others, where=folder)
    entries = []
    for relative, path in found.images.items():
        class_name = relative.split("/")[0]
        if class_name not in classes:
            raise InputError(f"{path}: {class_name} is none of the {len(classes)} classes; move it away")
        mask = (masks / path.relative_to(folder)).with_suffix(".png") if len(needed) > 1 else None
        annotate = partial(
            _annotate,
            image_path=path,
            mask_path=mask,
            num_classes=len(classes) + 1,
            class_id=classes.index(class_name) + 1 if "class_id" in has else None,
            has=has,
        )
        files = (mask,) if mask else ()
        facts = class_name.encode()
        listed = ListedImage(name=f"{name}/{relative}", image=path, files=files, annotate=annotate, facts=facts)
        entries.append(listed)
    return FoundPart(part=part, title=name, where=folder, entries=tuple(entries), has=has)


def _annotate(
    image: np.ndarray,
    contents: Sequence[bytes],
    *,
    image_path: Path,
    mask_path: Path | None,
    num_classes: int,
    class_id: int | None,
    has: frozenset[Annotation],
) -> Annotated:
    if mask_path is None:
        return Annotated(image, class_id=class_id)
    channels = decode_rgb_mask(mask_path, contents[0]).astype(np.int32)
    check_same_size(mask_path, channels, image_path, image)
    if channels[..., 2].any():
        raise InputError(f"{mask_path}: its blue channel is not 0, but ids are R + 256·G; it is no mask of ImageNet-S")
    ids = channels[..., 0] + 256 * channels[..., 1]
    check_ids(mask_path, ids, num_classes=num_classes, void=IGNORED, names="the class folders")
    labels = labels_of_ids(ids, void=IGNORED)
    objects = objects_of_classes(labels, background=OTHER) if "objects" in has else None
    return Annotated(image, labels if "labels" in has else None, objects, class_id=class_id)
