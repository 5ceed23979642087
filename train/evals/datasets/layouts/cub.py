"""CUB-200-2011: each image has one bird, drawn by several people; what most of them drew is the figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import Annotated
from train.evals.datasets.decode import check_same_size, decode_grey
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.label_maps import objects_of_classes
from train.evals.datasets.lists import read_pairs, require_name

IMAGES_NAME, SPLIT_NAME, MASKS_NAME = "images.txt", "train_test_split.txt", "segmentations"
CUB_CLASSES = ("background", "bird")
MOST_GROUND = 127  # grey levels up to it are ground: ReDO takes what is above one half of 255 (its datasets.py)
_GIVES = frozenset[Annotation]({"labels", "objects"})
_OFFICIAL: dict[DataPart, str] = {"train": "1", "val": "0"}
_REDO: dict[DataPart, str] = {"train": "0", "val": "2"}


def is_cub(path: Path) -> bool:
    """Whether `path` is CUB_200_2011, or the folder that holds it."""
    return any((root / IMAGES_NAME).is_file() for root in _roots(path))


def find_cub(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Birds of the test images: class 2 of ReDO's split, or 0 of train_test_split.txt.

    Raises:
        InputError: a list is missing or wrong, or a split is not of these images.
    """
    root = next((root for root in _roots(path) if (root / IMAGES_NAME).is_file()), None)
    if root is None:
        raise InputError(f"{path}: no {IMAGES_NAME} in it; CUB must be a folder of CUB-200-2011's layout")
    images = _images(root / IMAGES_NAME)
    masks = next((one for one in (root / MASKS_NAME, path / MASKS_NAME) if one.is_dir()), None)
    has = needs & _GIVES if masks else frozenset[Annotation]()
    lacks: dict[Annotation, str] = {}
    if masks is None:
        lacks |= dict.fromkeys(_GIVES, f"{root / MASKS_NAME} is missing; CUB gives its segmentations as an archive")
    lacks |= dict.fromkeys(("boxes", "class_id"), "it is not read from CUB; give COCO or VOC, or class folders")
    split, values = (settings.split, _REDO) if settings.split else (root / SPLIT_NAME, _OFFICIAL)
    chosen = _split(split, images, values)
    parts = {part: _part(part, root, masks, split, images, chosen[part], has) for part in values}
    if settings.split:
        note = f"test is class 2 of {split.name}, train is class 0 (ReDO's split)"
    else:
        note = f"test is 0 of {SPLIT_NAME}, not ReDO's split, which rows of the literature have; --split FILE takes it"
    return FoundData(
        root=root,
        classes=CUB_CLASSES,
        background=0,
        val=parts["val"],
        train=parts["train"] if parts["train"].entries else None,
        notes=(note, f"the bird is what is above grey level {MOST_GROUND} of its mask, as in ReDO"),
        lacks={key: text for key, text in lacks.items() if key in needs},
    )


def _roots(path: Path) -> tuple[Path, ...]:
    return path, path / "CUB_200_2011"


def _images(path: Path) -> dict[str, str]:
    """Names by id."""
    images = read_pairs(path, purpose="an image id and its name below images")
    for name in images.values():
        require_name(name, path=path, below="images")
    return images


def _split(path: Path, images: dict[str, str], values: dict[DataPart, str]) -> dict[DataPart, list[str]]:
    """Image ids by part, in the order of images.txt."""
    known = ("0", "1", "2") if values is _REDO else ("0", "1")
    split = read_pairs(path, purpose=f"an image id and one of {', '.join(known)}")
    wrong = next((f"{key} {value}" for key, value in split.items() if value not in known), None)
    if wrong:
        raise InputError(f"{path}: '{wrong:.60}' is no image id and one of {', '.join(known)}")
    if split.keys() != images.keys():
        different = sorted(split.keys() ^ images.keys())[0]
        raise InputError(f"{path} is not of these images: id {different} is in it or in {IMAGES_NAME}, not in both")
    return {part: [key for key in images if split[key] == value] for part, value in values.items()}


def _part(
    part: DataPart,
    root: Path,
    masks: Path | None,
    split: Path,
    images: dict[str, str],
    ids: list[str],
    has: frozenset[Annotation],
) -> FoundPart:
    entries = []
    for name in (images[key] for key in ids):
        image, mask = root / "images" / name, None
        if masks and has:
            mask = (masks / name).with_suffix(".png")
        annotate = partial(_annotate, image_path=image, mask_path=mask, has=has)
        entries.append(ListedImage(name=name, image=image, files=(mask,) if mask else (), annotate=annotate))
    title = "test" if part == "val" else part
    has = has if part == "val" else has & {"labels"}
    return FoundPart(part=part, title=title, where=split, entries=tuple(entries), has=has)


def _annotate(
    image: np.ndarray,
    contents: Sequence[bytes],
    *,
    image_path: Path,
    mask_path: Path | None,
    has: frozenset[Annotation],
) -> Annotated:
    if mask_path is None:
        return Annotated(image)
    levels = decode_grey(mask_path, contents[0])
    check_same_size(mask_path, levels, image_path, image)
    labels = (levels > MOST_GROUND).astype(np.int16)
    objects = objects_of_classes(labels, background=0) if "objects" in has else None
    return Annotated(image, labels if "labels" in has else None, objects)
