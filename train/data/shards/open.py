"""Finished shards as a run reads them: opened, checked before anything starts, and what each node will read of them."""

from __future__ import annotations

import numpy as np

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from train.config.data import DataSettings
from train.config.pretrain import PretrainSettings
from train.data.order import SampleOrder
from train.data.shards.files import ShardFiles
from train.data.shards.reader import ShardReader
from train.data.shards.skipped import require_few_skipped

PROBED_STEPS = 64
LEAST_SAMPLE = 512  # bytes of a tar: one header


def open_shards(place: str, manifest: Manifest, data: DataSettings) -> ShardReader:
    """A reader of the shards at a path or URL; opens nothing yet."""
    files = ShardFiles(
        place,
        manifest,
        cache=data.cache,
        cache_bytes=int(data.cache_gb * 1e9),
        verify=data.verify,
        recheck_days=data.recheck_days,
        retries=data.retries,
    )
    return ShardReader(files, manifest)


def check_shards(reader: ShardReader, settings: PretrainSettings) -> list[str]:
    """That every tar and index is there with its stated size, by one listing.

    Returns:
        what is wrong with which shard, where `on_damage: skip` and `max_skipped_fraction` accept it.
    Raises:
        InputError: something is wrong that they do not accept.
    """
    max_superpixels(reader.manifest, settings)
    for stats in reader.manifest.shards:
        if stats.samples * LEAST_SAMPLE > stats.bytes:
            raise InputError(
                f"{reader.files.place}: manifest.json is damaged: {stats.name} is too small for {stats.samples} "
                "samples; run `make shards` again"
            )
    problems = reader.files.problems()
    if problems and settings.data.on_damage == "fail":
        raise InputError(next(iter(problems.values())))
    manifest = reader.manifest
    require_few_skipped(
        sum(manifest.shards[shard].samples for shard in problems),
        num_samples=manifest.stored,
        max_fraction=settings.data.max_skipped_fraction,
        epoch=0,
    )
    return list(problems.values())


def max_superpixels(manifest: Manifest, settings: PretrainSettings) -> int:
    """Ids of the label maps that a run reads are below this. Raises InputError where the shards lack one of them."""
    maps = settings.data.superpixel_maps
    for name in maps:
        if name not in manifest.maps:
            has = f"; they have {', '.join(manifest.maps)}" if manifest.maps else ""
            raise InputError(
                f"pretrain.data.superpixel_maps: the shards have no map '{name}'{has}; make them with "
                f"shards.maps.{name}"
            )
    return max(manifest.map_stats(name).max_superpixels for name in ([*maps] or [MAIN_MAP]))


def describe_reading(reader: ShardReader, settings: PretrainSettings, *, node_ranks: range, num_ranks: int) -> str:
    """What one node will read in an epoch, in bytes, and where it puts it.

    Raises:
        InputError: the cache is smaller than what the node reads side by side, or others may write to it.
    """
    manifest, files = reader.manifest, reader.files
    order = SampleOrder.of(settings, tuple(shard.samples for shard in manifest.shards))
    size = np.array([shard.bytes for shard in manifest.shards])
    steps = range(order.steps_per_epoch)
    read = order.shards_between(0, steps, ranks=node_ranks, num_ranks=num_ranks)
    side_by_side = max(
        len(order.shards_between(0, range(step, step + 1), ranks=node_ranks, num_ranks=num_ranks))
        for step in steps[:: max(1, len(steps) // PROBED_STEPS)]
    )
    text = (
        f"{files.place}: {manifest.stored} samples in {len(size)} shards, {size.sum() / 1e9:.4g} GB; a node reads "
        f"{len(read)} of them, {size[read].sum() / 1e9:.4g} GB, an epoch, {side_by_side} side by side"
    )
    files.require_own_folders()
    if not files.is_cached:
        return text
    needed = side_by_side * int(size.max())
    if settings.data.cache_gb * 1e9 < needed:
        raise InputError(
            f"pretrain.data.cache_gb {settings.data.cache_gb:g} is less than what a node reads side by side, "
            f"{side_by_side} shards of up to {size.max() / 1e9:.4g} GB: {needed / 1e9:.4g}; raise it (twice that is "
            "good), or lower pretrain.data.shuffle_lanes"
        )
    return f"{text}, through {files.cache} (up to {settings.data.cache_gb:g} GB)"
