"""Small shards as the trainer finds them, written without what makes superpixels: neither fast_slic nor Ray is needed.

Order, names and members are those of preprocess; the label maps alone are made here. `like_slic` gives what SLIC gives:
regions of uneven size and shape, whose borders follow the colours.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import (
    MANIFEST_FORMAT_VERSION,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    IndexEntry,
    Manifest,
    MapStats,
    ShardIndex,
    ShardStats,
    encode_quarantine,
)
from pipeline.artifacts.sample import IMAGE_MEMBER, META_MEMBER, SampleMeta, encode_label_map, source_name
from pipeline.foundation.files import atomic_writer, write_atomic
from preprocess.config import FastSlicSettings, GridSettings, ShardSettings
from preprocess.shards.images import read_image
from preprocess.shards.plan import Plan
from preprocess.shards.tar_writer import TarWriter
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Source

LabelMaps = dict[str, np.ndarray]  # by name
MapsOf = Callable[[np.ndarray, ShardSettings, Source], LabelMaps]
COMPACTNESS = 10.0  # as SLIC's: a colour that far away counts as much as a place one region away


def write_images(folder: Path, *, count: int, seed: int = 0) -> None:
    """Photographs of a kind: smooth noise with a bright rectangle, in two classes, of uneven sizes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        width, height = (int(v) for v in rng.integers(48, 96, 2))
        noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)).copy()
        pixels[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        path = folder / f"class{i % 2}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def write_shards(
    images: Path,
    folder: Path,
    settings: ShardSettings,
    *,
    maps_of: MapsOf | None = None,
) -> Manifest:
    """The shards of a folder of images, as `r2o shards` leaves them.

    Args:
        maps_of: gives the label maps of an image from its pixels, uint8 (H, W, 3); `made_maps` where not given.
    """
    plan = Plan(list_images(images), settings)
    folder.mkdir(parents=True, exist_ok=True)
    largest: dict[str, int] = {}
    stats = []
    for number in range(len(plan)):
        positions = plan.positions(number)
        with atomic_writer(folder / plan.name(number)) as file:
            tar, entries = TarWriter(file), []
            for position, source in zip(positions, plan.sources(positions), strict=True):
                members, counts = _members(images / os.fsdecode(source.name), source, settings, maps_of or made_maps)
                largest = {name: max(count, largest.get(name, 0)) for name, count in counts.items()}
                key = f"{position:09d}"
                places = {name: tar.add(f"{key}.{name}", data) for name, data in members.items()}
                entries.append(IndexEntry(key=key, members=places))
            tar.finish()
        index = ShardIndex(entries=tuple(entries)).encode()
        stats.append(
            ShardStats(
                name=plan.name(number),
                samples=len(entries),
                bytes=tar.size,
                sha256=tar.digest.hexdigest(),
                index_sha256=hashlib.sha256(index).hexdigest(),
            )
        )
        write_atomic(folder / stats[-1].index_name, index)
    return _finished(folder, plan, stats, largest)


def _members(
    path: Path,
    source: Source,
    settings: ShardSettings,
    maps_of: Callable[[np.ndarray, ShardSettings, Source], LabelMaps],
) -> tuple[dict[str, bytes], dict[str, int]]:
    """The members of a sample, and the number of ids of each map."""
    image = read_image(path.read_bytes(), quality=settings.quality, max_pixels=settings.max_pixels)
    maps = maps_of(image.pixels[..., :3], settings, source)
    counts = {name: int(label_map.max()) + 1 for name, label_map in maps.items()}
    meta = SampleMeta(
        source=source_name(source.name),
        width=image.width,
        height=image.height,
        num_superpixels=counts[MAIN_MAP],
        class_name=source.class_name,
        changed=image.changed,
        source_bytes=path.stat().st_size,
        source_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    encoded = {map_member(name): encode_label_map(label_map) for name, label_map in maps.items()}
    return {IMAGE_MEMBER: image.jpeg, **encoded, META_MEMBER: meta.encode()}, counts


def _finished(folder: Path, plan: Plan, stats: list[ShardStats], largest: dict[str, int]) -> Manifest:
    """What says that the set is whole."""
    quarantine, content = encode_quarantine([]), plan.settings.content()
    write_atomic(folder / QUARANTINE_NAME, quarantine)
    versions = {"numpy": np.__version__}  # made the label maps
    decided = {"settings": content, "versions": versions, "images": plan.listing.sha256}
    manifest = Manifest(
        settings=content,
        versions=versions,
        fingerprint=fingerprint(format_version=MANIFEST_FORMAT_VERSION, **decided),
        listed=plan.total,
        stored=plan.total,
        quarantined=0,
        ignored=0,
        superpixel_size=plan.settings.superpixels.size,
        max_superpixels=largest[MAIN_MAP],
        maps={
            name: MapStats(size=made.size, max_superpixels=largest[name]) for name, made in plan.settings.maps.items()
        },
        classes=plan.listing.classes,
        quarantine_sha256=hashlib.sha256(quarantine).hexdigest(),
        shards=tuple(stats),
    )
    write_atomic(folder / MANIFEST_NAME, manifest.encode())
    return manifest


def made_maps(pixels: np.ndarray, settings: ShardSettings, source: Source) -> LabelMaps:
    """The label maps that settings ask for: a grid as it is, what SLIC would make as `like_slic`."""
    maps = {}
    for name, made in {MAIN_MAP: settings.superpixels, **settings.maps}.items():
        if isinstance(made, GridSettings):
            places = np.arange(made.size)
            cells = (places * made.rows // made.size)[:, None] * made.columns + places * made.columns // made.size
            maps[name] = cells.astype(np.uint8 if made.rows * made.columns <= 255 else np.uint16)
        else:
            assert isinstance(made, FastSlicSettings)
            resized = Image.fromarray(pixels).resize((made.size, made.size), Image.Resampling.BILINEAR)
            maps[name] = like_slic(np.asarray(resized), segments=made.segments)
    return maps


def like_slic(pixels: np.ndarray, *, segments: int) -> np.ndarray:
    """Superpixels of an image: each pixel joins the seed that is nearest in place and colour, as in SLIC's first pass.

    Seeds lie on a grid and are moved by chance, the same for the same image. A pixel chooses among the nine around it.
    A region may lie in pieces, as SLIC's do before they are joined.

    Args:
        pixels: uint8 (size, size, 3).
    Returns:
        uint8 (size, size); ids 0 … n−1, none missing, with n ≤ segments ≤ 255.
    """
    size = len(pixels)
    rows = max(int(segments**0.5), 1)
    counts = np.array([rows, segments // rows])
    drawn = np.random.default_rng(int(pixels.sum())).uniform(0.1, 0.9, (*counts, 2))
    seeds = (np.stack(np.meshgrid(*map(np.arange, counts), indexing="ij"), -1) + drawn) * size / counts
    colours = pixels.astype(np.float32)
    of_seeds = colours[tuple(seeds.astype(int).reshape(-1, 2).T)].reshape(*counts, 3)
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1) + 0.5
    cells = (places * counts / size).astype(int)
    nearest, labels = np.full((size, size), np.inf), np.zeros((size, size), int)
    for step in np.ndindex(3, 3):
        row, column = np.moveaxis(np.clip(cells + step - np.array([1, 1]), 0, counts - 1), -1, 0)
        away = (((places - seeds[row, column]) * counts / size) ** 2).sum(-1)
        away += ((colours - of_seeds[row, column]) ** 2).sum(-1) / COMPACTNESS**2
        closer = away < nearest
        nearest[closer], labels[closer] = away[closer], (row * counts[1] + column)[closer]
    ids: np.ndarray = np.unique(labels, return_inverse=True)[1].reshape(size, size)
    return ids.astype(np.uint8)
