"""A contact sheet of shards: images with the borders of their superpixels.

python -m preprocess.preview --shards SHARDS --out sheet.png [--count 24]
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts.errors import InputError, exit_code_of
from pipeline.artifacts.files import write_atomic
from pipeline.artifacts.manifest import IndexEntry, Manifest, ShardIndex
from pipeline.artifacts.pictures import draw_boundaries, resize_labels, sheet
from pipeline.artifacts.sample import IMAGE_MEMBER, SUPERPIXELS_MEMBER, decode_jpeg, decode_label_map

PAIRS_PER_ROW = 3
TILE = 224


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.preview", description="Draw superpixels of shards.")
    parser.add_argument("--shards", type=Path, required=True, help="a finished folder of shards")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--count", type=int, default=24, help="number of images, spread evenly over the set")
    args = parser.parse_args(argv)
    return exit_code_of(lambda: _run(args.shards, args.out, args.count))


def _run(shards: Path, out: Path, count: int) -> int:
    picture = contact_sheet(shards, count=count)
    write_sheet(picture, out)
    print(f"superpixels: {out}")
    return 0


def write_sheet(picture: Image.Image, path: Path) -> None:
    """Write a contact sheet as PNG, whole or not at all. Raises InputError where its folder is missing."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def contact_sheet(folder: Path, *, count: int) -> Image.Image:
    """Pairs of image and image with borders, of `count` samples spread evenly over the set.

    Raises:
        InputError: no finished shards, none of them holds a sample, a file is damaged, or `count` is below 1.
    """
    if count < 1:
        raise InputError(f"--count {count}: give at least 1")
    manifest = Manifest.read(folder)
    if not manifest.stored:
        raise InputError(f"{folder}: no image was stored; quarantine.jsonl says why")
    pairs = [_pair(folder, manifest, number) for number in spread(manifest.stored, count)]
    rows = [pairs[start : start + PAIRS_PER_ROW] for start in range(0, len(pairs), PAIRS_PER_ROW)]
    return sheet([[tile for pair in row for tile in pair] for row in rows])


def spread(total: int, count: int) -> list[int]:
    """At most `count` different numbers of [0, total), evenly spaced from the first to the last."""
    return sorted({int(number) for number in np.linspace(0, total - 1, min(count, total)).round()})


def _pair(folder: Path, manifest: Manifest, number: int) -> tuple[np.ndarray, np.ndarray]:
    for shard in manifest.shards:
        if number < shard.samples:
            break
        number -= shard.samples
    index = ShardIndex.read(folder, shard.index_name)
    tar = folder / shard.name
    try:
        image = decode_jpeg(_member(tar, index.entries[number], IMAGE_MEMBER))
        label_map = decode_label_map(_member(tar, index.entries[number], SUPERPIXELS_MEMBER))
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{tar}: sample {number} cannot be read ({error}); run `make shards` again") from None
    tile = np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR))
    return tile, draw_boundaries(tile, resize_labels(label_map, (TILE, TILE)))


def _member(tar: Path, entry: IndexEntry, name: str) -> bytes:
    offset, size = entry.members[name]
    with tar.open("rb") as file:
        file.seek(offset)
        return file.read(size)


if __name__ == "__main__":
    sys.exit(main())
