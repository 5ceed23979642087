"""A folder of VOC2012's layout: where it is, its class names, its lists, and its images with their masks.

Fine-tuning and the probe take its samples from here; `train/evals/datasets/layouts/voc.py` is over it.

VOC2012/JPEGImages/<name>.jpg  SegmentationClass/<name>.png  ImageSets/Segmentation/{train,val}.txt  [classes.txt]
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import VOID
from train.evals.datasets.decode import (
    check_ids,
    check_same_size,
    decode_ids,
    decode_picture,
    find_image,
    no_foreground,
    read_listed,
)
from train.evals.datasets.lists import CLASSES_NAME, read_class_names, read_text_lines, require_different, require_name
from train.evals.segmentation.augment import LabelledImage

IMAGE_FOLDER, MASK_FOLDER, LIST_FOLDER = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_MIB = 2**20
_DEEPLAB_LINE = re.compile(
    rf"/?{IMAGE_FOLDER}/(?P<image>.+)\.(?:jpe?g|png)\s+/?(?P<masks>[\w.-]+)/(?P<mask>.+)\.png", re.IGNORECASE
)
_MAIN_LINE = re.compile(r"\S+\s+(?:-1|0|1)")


@dataclass(frozen=True)
class VocFolder:
    """The folder that holds JPEGImages, and its classes: those of classes.txt (background first), else VOC's 21."""

    root: Path
    classes: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> VocFolder:
        """Accepts VOC2012 itself, VOCdevkit, or the folder that holds VOCdevkit.

        Raises:
            InputError: there is no such layout, or classes.txt holds fewer than 2, more than 255 or equal names.
        """
        for root in (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012"):
            if (root / IMAGE_FOLDER).is_dir():
                return cls(root, _read_classes(root / CLASSES_NAME))
        missing = f"no {IMAGE_FOLDER} in it" if path.is_dir() else "no such folder"
        raise InputError(f"{path}: {missing}; VOC must be a folder of VOC2012's layout (or the VOCdevkit above it)")

    def list_file(self, list_name: str) -> Path:
        """ImageSets/Segmentation/<list_name>.txt; a name with a folder, as Main/trainval, is below ImageSets."""
        folder = "ImageSets" if "/" in list_name else LIST_FOLDER
        return self.root / folder / f"{list_name}.txt"

    def names(self, list_name: str, *, masks: str | None = None) -> list[str]:
        """Image names of a list. Taken too: a suffix, and DeepLab's lines `/JPEGImages/a.jpg /<masks>/a.png`.

        Raises:
            InputError: missing, empty, one twice, one that leads elsewhere, a line that could mean something else.
        """
        path = self.list_file(list_name)
        lines = read_text_lines(path, purpose="one image name a line, without suffix")
        if not lines:
            raise InputError(f"{path} is empty; it must hold one image name a line, without suffix")
        names = [self._name_of(line, path, masks) for line in lines]
        require_different(names, path=path)
        return names

    def _name_of(self, line: str, path: Path, masks: str | None) -> str:
        if pair := _DEEPLAB_LINE.fullmatch(line):
            if pair["image"] != pair["mask"] or masks not in (None, pair["masks"]):
                wanted = f"/{masks or MASK_FOLDER}/{pair['image']}.png"
                raise InputError(
                    f"{path}: '{line:.120}' names another mask than {wanted}; choose those masks, or list names alone"
                )
            line = pair["image"]
        name = require_name(line, path=path, below=IMAGE_FOLDER)
        folder = self.root / IMAGE_FOLDER
        if _MAIN_LINE.fullmatch(name) and not find_image(folder, name).is_file():
            raise InputError(f"{path}: '{name:.60}' is a name and a flag, as in ImageSets/Main; list names alone")
        stem, _ = os.path.splitext(name)
        listed = folder / name  # with its suffix
        return stem if find_image(folder, stem) == listed and listed.is_file() else name

    def file(self, name: str, *, masks: str = MASK_FOLDER) -> VocFile:
        """Where an image and its mask lie."""
        return VocFile(name, find_image(self.root / IMAGE_FOLDER, name), self.root / masks / f"{name}.png")

    def split(self, list_name: str, *, masks: str = MASK_FOLDER, cache_mib: int = 0) -> VocSplit:
        """The labelled images of a list, every one of them read and checked."""
        files = tuple(self.file(name, masks=masks) for name in self.names(list_name, masks=masks))
        return VocSplit(files, num_classes=len(self.classes), cache_mib=cache_mib)


@dataclass(frozen=True)
class VocFile:
    """One image and its mask."""

    name: str
    image: Path
    mask: Path

    def read(self, num_classes: int) -> ReadFile:
        """Both files, decoded and checked. EXIF orientation is ignored, as VOC's tools do.

        Raises:
            InputError: a file is missing or damaged, sizes differ, or a class id is ≥ `num_classes` and not 255.
        """
        image_bytes, mask_bytes = read_listed(self.image), read_listed(self.mask)
        image = decode_picture(self.image, image_bytes)
        labels = decode_ids(self.mask, mask_bytes, num_classes=num_classes)
        check_same_size(self.mask, labels, self.image, image)
        check_ids(self.mask, labels, num_classes=num_classes)
        counts = np.bincount(labels.ravel(), minlength=VOID + 1)
        hashes = hashlib.sha256(image_bytes).digest() + hashlib.sha256(mask_bytes).digest()
        return ReadFile(LabelledImage(image, labels), hashes, counts[:num_classes])


class ReadFile(NamedTuple):
    """A decoded pair, the SHA-256 of both files' bytes, and how many pixels each class has."""

    sample: LabelledImage
    hashes: bytes
    pixels: np.ndarray


class VocSplit:
    """Labelled images in the order of a list. The first ones that fit into `cache_mib` stay decoded in memory.

    `digest` is the hex SHA-256 of all names and contents, `pixels` how many each class has, without void.
    """

    def __init__(self, files: tuple[VocFile, ...], *, num_classes: int, cache_mib: int = 0) -> None:
        self.files, self.num_classes = files, num_classes
        self._cache: list[LabelledImage] = []
        self._hashes: list[bytes] = []
        digest, room, pixels = hashlib.sha256(), cache_mib * _MIB, np.zeros(num_classes, np.int64)
        for file, found in zip(files, _read_all(files, num_classes), strict=True):
            digest.update(hashlib.sha256(file.name.encode()).digest() + found.hashes)
            self._hashes.append(found.hashes)
            pixels += found.pixels
            room -= found.sample.image.nbytes + found.sample.labels.nbytes
            if room >= 0:
                self._cache.append(found.sample)
        self.digest, self.pixels = digest.hexdigest(), pixels.tolist()
        if files and not pixels[1:].any():
            raise no_foreground(files[0].mask.parent, len(files))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LabelledImage:
        if index < len(self._cache):
            return self._cache[index]
        found = self.files[index].read(self.num_classes)
        if found.hashes != self._hashes[index]:  # or scores would be kept under the digest of other files
            names = f"{self.files[index].image} or its mask"
            raise InputError(f"{names} changed since it was first read; run the same command again")
        return found.sample


def _read_all(files: tuple[VocFile, ...], num_classes: int) -> Iterator[ReadFile]:
    """Every file in order, a few at a time in threads, so that memory stays bounded."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(files), 64):
            yield from pool.map(lambda file: file.read(num_classes), files[start : start + 64])


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return VOC_CLASSES
    names = read_class_names(path, least=2, most=VOID, order="background first")
    if names[0].lower() in VOC_CLASSES[1:]:
        raise InputError(f"{path} begins with {names[0]}, but id 0 is the background; put that before it")
    return names
