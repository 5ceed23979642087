"""Cityscapes: `leftImg8bit/<list>/<city>/x_leftImg8bit.png` and `gtFine/<list>/<city>/x_gtFine_labelIds.png`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated
from train.evals.datasets.decode import check_ids, check_same_size, decode_ids
from train.evals.datasets.folders import note_of_others, pictures_below
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.label_maps import objects_of_classes

IMAGES_NAME, MASKS_NAME = "leftImg8bit", "gtFine"
IMAGE_END, MASK_END = "_leftImg8bit.png", "_gtFine_labelIds.png"
MOST_LABEL_ID = 33  # of 0 … 33; −1, the licence plate, is not written to masks
# The 19 labelIds that count, in the order of trainIds (cityscapesScripts, helpers/labels.py).
CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_GIVES = frozenset[Annotation]({"labels", "objects"})
_LABEL_OF = np.full(256, UNLABELLED, dtype=np.int16)
_LABEL_OF[list(CITYSCAPES_CLASSES)] = np.arange(len(CITYSCAPES_CLASSES))


def is_cityscapes(path: Path) -> bool:
    """Whether `path` has leftImg8bit and gtFine."""
    return (path / IMAGES_NAME).is_dir() and (path / MASKS_NAME).is_dir()


def find_cityscapes(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Every image of the folders of a list. Raises InputError where a folder is missing."""
    has, notes = needs & _GIVES, list[str]()
    val = _part("val", path, settings.val_list or "val", has, notes)
    train = None
    if settings.train_list or (path / IMAGES_NAME / "train").is_dir():
        train = _part("train", path, settings.train_list or "train", has & {"labels"}, notes)
    return FoundData(
        root=path,
        classes=tuple(CITYSCAPES_CLASSES.values()),
        background=None,
        val=val,
        train=train,
        notes=(f"the {len(CITYSCAPES_CLASSES)} classes that count; all other labelIds are void", *notes),
        lacks=dict.fromkeys(needs - _GIVES, "it is not read from Cityscapes; give COCO or VOC, or class folders"),
    )


def _part(part: DataPart, root: Path, name: str, has: frozenset[Annotation], notes: list[str]) -> FoundPart:
    folder = root / IMAGES_NAME / name
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; train_list and val_list name folders below {IMAGES_NAME}")
    found, entries = pictures_below(folder, suffixes=(".png",)), []
    others = (*found.others, *(one for one in found.images if not one.endswith(IMAGE_END)))
    notes += note_of_others(others, where=folder)
    for relative, path in found.images.items():
        if path.name.endswith(IMAGE_END):
            beside = path.relative_to(folder).with_name(path.name.removesuffix(IMAGE_END) + MASK_END)
            mask = root / MASKS_NAME / name / beside
            annotate = partial(_annotate, image_path=path, mask_path=mask, has=has)
            files = (mask,) if has else ()
            entries.append(ListedImage(name=f"{name}/{relative}", image=path, files=files, annotate=annotate))
    return FoundPart(part=part, title=name, where=folder, entries=tuple(entries), has=has)


def _annotate(
    image: np.ndarray, contents: Sequence[bytes], *, image_path: Path, mask_path: Path, has: frozenset[Annotation]
) -> Annotated:
    if not has:
        return Annotated(image)
    ids = decode_ids(mask_path, contents[0], num_classes=MOST_LABEL_ID + 1)
    check_same_size(mask_path, ids, image_path, image)
    check_ids(mask_path, ids, num_classes=MOST_LABEL_ID + 1, names="Cityscapes' labelIds")
    labels: np.ndarray = _LABEL_OF[ids]
    objects = objects_of_classes(labels, background=None) if "objects" in has else None
    return Annotated(image, labels if "labels" in has else None, objects)
