"""A folder of VOC2012's layout: where it is, its class names, its lists, and its images with their masks.

VOC2012/JPEGImages/<name>.jpg  SegmentationClass/<name>.png  ImageSets/Segmentation/{train,val}.txt  [classes.txt]
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.png import open_whole_png
from pipeline.artifacts.sample import decode_jpeg
from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import VOID
from train.evals.segmentation.augment import LabelledImage

IMAGE_FOLDER, MASK_FOLDER, LIST_FOLDER = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
CLASSES_NAME = "classes.txt"
# fmt: off
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_MIB = 2**20


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

    def names(self, list_name: str) -> list[str]:
        """Image names of ImageSets/Segmentation/<list_name>.txt.

        Raises:
            InputError: missing, empty, one twice, or one that leads elsewhere.
        """
        path = self.root / LIST_FOLDER / f"{list_name}.txt"
        names = _read_lines(path, purpose="one image name a line, without suffix")
        if not names:
            raise InputError(f"{path} is empty; it must hold one image name a line, without suffix")
        seen: set[str] = set()
        for name in names:
            if "\0" in name or name.startswith("/") or ".." in name.split("/"):
                raise InputError(f"{path} lists {name!r}, which is no name below {IMAGE_FOLDER}; remove it")
            if name in seen:
                raise InputError(f"{path} lists {name} twice; remove one")
            seen.add(name)
        return names

    def file(self, name: str, *, masks: str = MASK_FOLDER) -> VocFile:
        """Where an image and its mask lie."""
        return VocFile(name, self.root / IMAGE_FOLDER / f"{name}.jpg", self.root / masks / f"{name}.png")

    def split(self, list_name: str, *, masks: str = MASK_FOLDER, cache_mib: int = 0) -> VocSplit:
        """The labelled images of a list, every one of them read and checked."""
        files = tuple(self.file(name, masks=masks) for name in self.names(list_name))
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
        image_bytes, mask_bytes = _read_bytes(self.image), _read_bytes(self.mask)
        try:
            image = decode_jpeg(image_bytes)
        except ValueError as error:
            raise InputError(
                f"{self.image} is not a whole JPEG ({error}); replace it or take it off the list"
            ) from None
        labels = _decode_mask(self.mask, mask_bytes)
        if image.shape[:2] != labels.shape:
            (height, width), (mask_height, mask_width) = image.shape[:2], labels.shape
            raise InputError(f"{self.mask} is {mask_width}×{mask_height}, but {self.image.name} is {width}×{height}")
        counts = np.bincount(labels.ravel(), minlength=VOID + 1)
        wrong = np.flatnonzero(counts[num_classes:VOID]) + num_classes
        if wrong.size:
            known = f"0 … {num_classes - 1} or {VOID} (void)"
            raise InputError(f"{self.mask} holds class id {wrong[0]}, but ids must be {known}; see {CLASSES_NAME}")
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} is listed, but cannot be read: {error.strerror}; add it or shorten the list"
        ) from None


def _decode_mask(path: Path, data: bytes) -> np.ndarray:
    try:
        mask = open_whole_png(data)
    except ValueError as error:
        raise InputError(f"{path} is not a whole PNG ({error}); replace it or take it off the list") from None
    if mask.mode not in ("P", "L"):
        raise InputError(f"{path}: a mask is an 8-bit palette or grey PNG of class ids, not {mask.mode}")
    return np.array(mask)


def _read_lines(path: Path, *, purpose: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}; it must hold {purpose}") from None


def _read_classes(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return VOC_CLASSES
    names = _read_lines(path, purpose="one class name a line, background first")
    if not 2 <= len(names) <= VOID or len(set(names)) < len(names):
        raise InputError(f"{path} must hold 2 to {VOID} different class names, one a line, background first")
    return tuple(names)
