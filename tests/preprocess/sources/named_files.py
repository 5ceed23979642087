"""Files that are images by name only, and what is listed of them."""

from __future__ import annotations

from pathlib import Path

from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


def paths(root: Path | str, **settings: object) -> list[bytes]:
    return [image.name for image in list_images(root, SourceSettings(**settings))]
