"""Images that are files in folders, without a list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.sample import source_name
from pipeline.foundation.errors import InputError
from train.evals.datasets.decode import PICTURE_SUFFIXES


class PicturesBelow(NamedTuple):
    """Images below a folder, by name relative to it, sorted; and the files that are none by their suffix."""

    images: dict[str, Path]
    others: tuple[str, ...]


def pictures_below(folder: Path, *, suffixes: tuple[str, ...] = PICTURE_SUFFIXES) -> PicturesBelow:
    """Every image at any depth, links followed.

    Raises:
        InputError: a folder cannot be read, or is a link to one above it, so that there is no end.
    """
    images, others = dict[str, Path](), list[str]()
    for path in sorted(_files(folder, ())):
        name = source_name(os.fsencode(path.relative_to(folder)))
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            images[name] = path
        else:
            others.append(name)
    return PicturesBelow(images, tuple(others))


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder, by name; those whose name begins with a dot are none."""
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))


def note_of_others(others: tuple[str, ...], *, where: Path) -> tuple[str, ...]:
    """A note on files that were left out, where there are any."""
    shown = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
    return (f"{len(others)} files below {where.name} are no images and were left out: {shown}",) if others else ()


def _files(folder: Path, above: tuple[tuple[int, int], ...]) -> list[Path]:
    try:
        status = folder.stat()
        place = (status.st_dev, status.st_ino)
        if place in above:
            raise InputError(f"{folder} is a link to a folder above it; remove it")
        with os.scandir(folder) as listing:
            inside = [(folder / one.name, one.is_dir()) for one in listing]
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; put that right") from None
    return [file for path, is_folder in inside for file in (_files(path, (*above, place)) if is_folder else [path])]
