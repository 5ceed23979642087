"""Which files of a folder are images, by name alone; the order of the list is that of the path bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.sample import source_name

IMAGE_SUFFIXES = frozenset({b".jpg", b".jpeg", b".png", b".webp", b".gif", b".bmp", b".tif", b".tiff"})


class Source(NamedTuple):
    """A listed image: path bytes relative to the source root, and size in bytes (0 for a dangling link)."""

    path: bytes
    size: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images under `root` in the order of their path bytes, and how many other files were ignored."""

    root: Path
    images: tuple[Source, ...]
    ignored: int
    has_classes: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the first folder level, sorted; empty where an image lies beside them."""
        return tuple(sorted({name for image in self.images if (name := self.class_of(image.path)) is not None}))

    def class_of(self, path: bytes) -> str | None:
        """The class of an image, from its first folder."""
        return source_name(path.partition(b"/")[0]) if self.has_classes else None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over every path and size, in order."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(b"%s\0%d\n" % (image.path, image.size))
        return digest.hexdigest()


def list_images(root: Path) -> Listing:
    """Every image under a folder.

    Listed are regular files with an image's suffix, in any case, and links to such files; a dangling link too, so
    that it ends in quarantine and not in silence. Links to folders are followed unless they lead into themselves.
    Everything else (other suffixes, hidden entries, looping links, devices) is ignored and counted.

    Raises:
        InputError: the folder is missing, cannot be read, or holds no image.
    """
    if not root.is_dir():
        raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; give a folder of images")
    images: list[Source] = []
    try:
        ignored = _walk(os.fsencode(root), b"", images, ancestors=())
    except OSError as error:
        where = os.fsdecode(error.filename or str(root))
        raise InputError(f"{where}: cannot be listed ({error.strerror}); make it readable or move it away") from None
    if not images:
        raise InputError(_nothing_found(root, ignored))
    images.sort()
    return Listing(
        root=root, images=tuple(images), ignored=ignored, has_classes=all(b"/" in image.path for image in images)
    )


def _walk(folder: bytes, relative: bytes, images: list[Source], *, ancestors: tuple[tuple[int, int], ...]) -> int:
    """Append the images under `folder`; the number of entries ignored."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return 1
    ignored = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                ignored += 1
            elif _is_folder(entry):
                inside = relative + entry.name + b"/"
                ignored += _walk(entry.path, inside, images, ancestors=(*ancestors, identity))
            elif (size := _image_size(entry)) is not None:
                images.append(Source(relative + entry.name, size))
            else:
                ignored += 1
    return ignored


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _image_size(entry: os.DirEntry[bytes]) -> int | None:
    """Size in bytes of what is an image by name, None of what is not."""
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
        return None
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        if error.errno == errno.ENOENT and entry.is_symlink():
            return 0
        raise
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _nothing_found(root: Path, ignored: int) -> str:
    suffixes = ", ".join(sorted(suffix.decode() for suffix in IMAGE_SUFFIXES))
    if not ignored:
        return f"{root}: the folder is empty; give one that holds images ({suffixes})"
    return f"{root}: no image among its files ({ignored} ignored); images end in {suffixes}"
