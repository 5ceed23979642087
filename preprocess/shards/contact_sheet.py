"""A contact sheet of shards: images beside the same images with the borders of their superpixels."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import Manifest, ShardIndex, ShardStats
from pipeline.artifacts.png import PNG_SIGNATURE
from pipeline.artifacts.sample import IMAGE_MEMBER, decode_jpeg, decode_label_map
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from pipeline.foundation.folders import Folder, folder_at
from pipeline.foundation.pictures import draw_boundaries, resize_labels, sheet

PAIRS_PER_ROW = 3
KEY_DIGITS = 9
TILE = 224


def check_sheet(path: Path) -> None:
    """Raises InputError where something else than a PNG is in the way of a sheet."""
    if os.path.lexists(path) and not (path.is_file() and _begins_as_png(path)):
        raise InputError(f"{path} is there, and is no PNG; choose another name")


def _begins_as_png(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(PNG_SIGNATURE)) == PNG_SIGNATURE


def write_sheet(picture: Image.Image, path: Path) -> None:
    """Write a contact sheet as PNG, whole or not at all.

    Raises:
        InputError: its folder is missing, or something else than a PNG is in the way.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it first")
    check_sheet(path)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_atomic(path, buffer.getvalue())


def contact_sheet(
    place: str | os.PathLike[str],
    *,
    count: int,
    shards: Sequence[str] = (),
    keys: Sequence[str] = (),
    map_name: str = MAIN_MAP,
) -> Image.Image:
    """Pairs of image and image with borders: of the samples of `keys`, else of `count` spread evenly over `shards`.

    Args:
        shards: file names or numbers; none: the whole set.
        map_name: of the map to draw.
    Raises:
        InputError: no finished shards, none of them holds a sample, what is asked for is not there, a file is damaged,
            or `count` is below 1.
    """
    if count < 1:
        raise InputError(f"--count {count}: give at least 1")
    folder = folder_at(place)
    manifest = Manifest.read(folder)
    if map_name != MAIN_MAP and map_name not in manifest.maps:
        raise InputError(f"--map {map_name}: further maps of {folder.root} are {', '.join(manifest.maps) or 'none'}")
    if not manifest.stored:
        raise InputError(f"{folder.root}: no image was stored; quarantine.jsonl says why")
    if keys:
        chosen = [_sample_of_key(folder, manifest, key) for key in keys]
    else:
        chosen = _spread_over(manifest, [_shard_of(manifest, name) for name in shards], count)
    pairs = [_pair(folder, manifest.shards[shard], row, map_member(map_name)) for shard, row in chosen]
    rows = [pairs[start : start + PAIRS_PER_ROW] for start in range(0, len(pairs), PAIRS_PER_ROW)]
    return sheet([[tile for pair in row for tile in pair] for row in rows])


def _spread_over(manifest: Manifest, numbers: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Shard and row of `count` samples, evenly over these shards, all where none is named."""
    numbers = numbers or range(len(manifest.shards))
    ends = np.cumsum([manifest.shards[number].samples for number in numbers])
    if not ends[-1]:
        raise InputError(f"{manifest.shards[numbers[0]].name}: holds no sample; quarantine.jsonl says why")
    places = []
    for position in spread(int(ends[-1]), count):
        which = int(np.searchsorted(ends, position, side="right"))
        places.append((numbers[which], position - (int(ends[which - 1]) if which else 0)))
    return places


def _shard_of(manifest: Manifest, name: str) -> int:
    """The number of a shard that is given by name or number."""
    names = [stats.name for stats in manifest.shards]
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise InputError(f"--shard {name}: there are {names[0]} … {names[-1]}, or 0 … {len(names) - 1}")


def _sample_of_key(folder: Folder, manifest: Manifest, key: str) -> tuple[int, int]:
    """Shard and row of a sample. Its key says in which shard it must be."""
    shard = int(key) // manifest.images_per_shard if key.isdecimal() else len(manifest.shards)
    if shard < len(manifest.shards):
        entries = ShardIndex.read(folder, manifest.shards[shard]).entries
        rows = [row for row, entry in enumerate(entries) if entry.key == key.zfill(KEY_DIGITS)]
        if rows:
            return shard, rows[0]
    last = manifest.listed - 1
    raise InputError(f"--key {key}: no such sample; keys are 000000000 … {last:09d}, without those in quarantine")


def spread(total: int, count: int) -> list[int]:
    """At most `count` different numbers of [0, total), evenly spaced from the first to the last."""
    return sorted({int(number) for number in np.linspace(0, total - 1, min(count, total)).round()})


def _pair(folder: Folder, stats: ShardStats, row: int, member: str) -> tuple[np.ndarray, np.ndarray]:
    entry = ShardIndex.read(folder, stats).entries[row]
    try:
        image = decode_jpeg(folder.read_range(stats.name, *entry.members[IMAGE_MEMBER]))
        label_map = decode_label_map(folder.read_range(stats.name, *entry.members[member]))
    except (OSError, ValueError, LookupError, MemoryError) as error:
        where = f"{folder.root}/{stats.name}"
        raise InputError(f"{where}: sample {entry.key} cannot be read ({error}); run `make verify`") from None
    tile = np.asarray(Image.fromarray(image).resize((TILE, TILE), Image.Resampling.BILINEAR))
    return tile, draw_boundaries(tile, resize_labels(label_map, (TILE, TILE)))
