"""Every image below a folder, with or without annotations."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.foundation.errors import InputError
from train.evals.datasets.annotated import Annotated
from train.evals.datasets.decode import PICTURE_SUFFIXES, decode_picture, read_listed


class FolderImages:
    """The images below a folder, by path; hidden files and folders are left out, links to files are followed.

    Attributes:
        names: paths below the folder, with `/` between.
        digest, image_digest: hex SHA-256 of names and contents.
    Raises:
        InputError: there is no image, or one cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; --data must be a folder of images")
        self._folder = folder
        self.names = tuple(sorted(_names_below(folder)))
        if not self.names:
            raise InputError(f"{folder}: no image below it ({', '.join(PICTURE_SUFFIXES)})")
        self._hashes = [hashlib.sha256(read_listed(folder / name)).digest() for name in self.names]
        digest = hashlib.sha256()
        for name, content in zip(self.names, self._hashes, strict=True):
            digest.update(hashlib.sha256(name.encode(errors="surrogateescape")).digest() + content)
        self.digest = self.image_digest = digest.hexdigest()

    def read(self, index: int) -> Annotated:
        """One image. Raises InputError where it is damaged, or has changed since the list was made."""
        path = self._folder / self.names[index]
        data = read_listed(path)
        if hashlib.sha256(data).digest() != self._hashes[index]:
            raise InputError(f"{path} changed since it was first read; run the same command again")
        return Annotated(decode_picture(path, data))


def _names_below(folder: Path) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(PICTURE_SUFFIXES) and not name.startswith("."):
                found.append((Path(place) / name).relative_to(folder).as_posix())
    return found
