"""Images with label PNGs and a file of classes: images/<list>/… and annotations/<list>/…, as ADE20K's are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import VOID
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated
from train.evals.datasets.decode import check_ids, check_same_size, decode_ids
from train.evals.datasets.folders import note_of_others, pictures_below
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.label_maps import labels_of_ids, objects_of_classes
from train.evals.datasets.lists import CLASSES_NAME, MOST_CLASSES, read_class_names, read_text_lines

IMAGES_NAME = "images"
MASK_NAMES = ("annotations", "labels", "masks")
ADE_CLASSES_NAME, ADE_FOLDER = "objectInfo150.txt", "ADEChallengeData2016"
BACKGROUND_NAMES = ("background", "_background_")
VOID_16BIT = 2**16 - 1
_TRAIN, _VAL = ("training", "train"), ("validation", "val")
_GIVES = frozenset[Annotation]({"labels", "objects"})
_ADE_LINE = re.compile(r"\d+\s+\S+\s+\d+\s+\d+\s+[01]\s+(?P<name>.+)")


def is_label_pngs(path: Path) -> bool:
    """Whether `path` (or ADEChallengeData2016 in it) has images, label PNGs and a file of classes."""
    return _root(path) is not None


def find_label_pngs(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Images and their label PNGs, which have the same name with `.png`.

    Raises:
        InputError: a folder is missing, there are no classes, or two images would have one mask.
    """
    root = _root(path)
    if root is None:
        raise InputError(f"{path} must have {IMAGES_NAME}, one of {', '.join(MASK_NAMES)}, and {CLASSES_NAME}")
    ade = not (root / CLASSES_NAME).exists()
    classes = _ade_classes(root / ADE_CLASSES_NAME) if ade else _classes(root / CLASSES_NAME)
    first = (1 if ade else 0) if settings.first_class_id is None else settings.first_class_id
    background = 0 if classes[0].lower() in BACKGROUND_NAMES and first == 0 else None
    masks = next(root / name for name in MASK_NAMES if (root / name).is_dir())
    reader = _Reader(root=root, masks=masks, num_classes=len(classes), first=first, background=background)
    train_list, val_list = _lists(root, settings)
    notes = [f"classes are those of {ADE_CLASSES_NAME if ade else CLASSES_NAME}; the first is id {first} of masks"]
    has = needs & _GIVES
    val = reader.part("val", val_list, has, notes)
    train = None if train_list is None else reader.part("train", train_list, has & {"labels"}, notes)
    lacks = dict.fromkeys(needs - _GIVES, "label PNGs do not say it; give VOC or COCO, or class folders")
    return FoundData(
        root=root, classes=classes, background=background, val=val, train=train, notes=tuple(notes), lacks=lacks
    )


def _root(path: Path) -> Path | None:
    for root in (path, path / ADE_FOLDER):
        classes = any((root / name).is_file() for name in (CLASSES_NAME, ADE_CLASSES_NAME))
        if classes and (root / IMAGES_NAME).is_dir() and any((root / name).is_dir() for name in MASK_NAMES):
            return root
    return None


def _classes(path: Path) -> tuple[str, ...]:
    return read_class_names(path, least=2, most=MOST_CLASSES, order="in the order of ids")


def _ade_classes(path: Path) -> tuple[str, ...]:
    """The last column of ADE20K's table: Idx, Ratio, Train, Val, Stuff, Name."""
    lines = read_text_lines(path, purpose="ADE20K's table of classes")
    found = [_ADE_LINE.fullmatch(line) for line in lines]
    names = tuple(match["name"] for match in found if match)
    if len(names) < len(lines) - 1 or not names or len(set(names)) < len(names):  # the first line names the columns
        raise InputError(f"{path} is not ADE20K's table of classes; write their names to {CLASSES_NAME}, one a line")
    return names


def _lists(root: Path, settings: FrozenDataSettings) -> tuple[str | None, str]:
    """Names of the folders of train and val; `.` is all images."""
    for name in (settings.train_list, settings.val_list):
        if name is not None and not (root / IMAGES_NAME / name).is_dir():
            raise InputError(f"{root / IMAGES_NAME / name}: no such folder; train_list and val_list name folders there")
    there = {name for name in (*_TRAIN, *_VAL) if (root / IMAGES_NAME / name).is_dir()}
    train = settings.train_list or next((name for name in _TRAIN if name in there), None)
    val = settings.val_list or next((name for name in _VAL if name in there), None)
    if val is None and train is not None:
        raise InputError(f"{root / IMAGES_NAME} has {train}, but no validation or val; name it by val_list")
    return train, val or "."


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """What is the same for all images. `first`: the number of class 0 in masks; with 1, 0 is unlabelled."""

    root: Path
    masks: Path
    num_classes: int
    first: int
    background: int | None

    def part(self, part: DataPart, name: str, has: frozenset[Annotation], notes: list[str]) -> FoundPart:
        folder, masks = self.root / IMAGES_NAME / name, self.masks / name
        found, entries, taken = pictures_below(folder), list[ListedImage](), dict[Path, Path]()
        notes += note_of_others(found.others, where=folder)
        for relative, path in found.images.items():
            mask = (masks / path.relative_to(folder)).with_suffix(".png")
            if mask in taken:
                raise InputError(f"{taken[mask]} and {path.name} have one mask, {mask.name}; rename one")
            taken[mask] = path
            annotate = _Files(reader=self, image=path, mask=mask if has else None, has=has).annotate
            listed = ListedImage(
                name=f"{part}/{relative}",
                image=path,
                files=(mask,) if has else (),
                annotate=annotate,
                facts=f"class 0 is id {self.first}".encode() if has else b"",  # what equal files mean
            )
            entries.append(listed)
        if has and masks.is_dir():
            unused = [n for n, path in pictures_below(masks, suffixes=(".png",)).images.items() if path not in taken]
            if unused:
                notes.append(f"{len(unused)} label PNGs of {name} have no image and were left out: {unused[0]} …")
        title = part if name == "." else name
        return FoundPart(part=part, title=title, where=folder, entries=tuple(entries), has=has)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of one image."""

    reader: _Reader
    image: Path
    mask: Path | None
    has: frozenset[Annotation]

    def annotate(self, image: np.ndarray, contents: Sequence[bytes]) -> Annotated:
        if self.mask is None:
            return Annotated(image)
        labels = self._labels(contents[0], image)
        objects = objects_of_classes(labels, background=self.reader.background) if "objects" in self.has else None
        return Annotated(image, labels if "labels" in self.has else None, objects)

    def _labels(self, data: bytes, image: np.ndarray) -> np.ndarray:
        assert self.mask
        first, end = self.reader.first, self.reader.first + self.reader.num_classes
        ids = decode_ids(self.mask, data, num_classes=end, most_bits=16)
        check_same_size(self.mask, ids, self.image, image)
        void = VOID if ids.dtype == np.uint8 else VOID_16BIT
        check_ids(self.mask, ids, num_classes=end, void=void)
        labels = labels_of_ids(ids, void=void, first=first)
        labels[labels < 0] = UNLABELLED
        return labels
