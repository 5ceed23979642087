"""Shards to host batches: our exact stream, webdataset's stages, torch's worker processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.artifacts.errors import InputError
from train.config import PretrainSettings, decoding_workers
from train.data.augment import AugmentParams
from train.data.stream import RawStream, SampleOrder, ShardReader
from train.data.views import Sample, make_sample


class HostBatch(NamedTuple):
    """A local batch as the workers make it. `augment` holds NumPy arrays with leading axes (B, V)."""

    sample_id: Int[Tensor, " b"]
    images: UInt8[Tensor, "b 3 h w"]
    superpixels: Int[Tensor, "b s s"]
    views: UInt8[Tensor, "b 2 3 vh vw"]
    crop_box: Float[Tensor, "b 2 4"]
    flipped: Bool[Tensor, "b 2"]
    augment: AugmentParams


def collate(samples: Sequence[Sample]) -> HostBatch:
    """Samples stacked to a batch."""

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(sample, name) for sample in samples]))

    return HostBatch(
        sample_id=torch.tensor([sample.sample_id for sample in samples]),
        images=stacked("image"),
        superpixels=stacked("superpixels"),
        views=stacked("views"),
        crop_box=stacked("crop_box"),
        flipped=stacked("flipped"),
        augment=AugmentParams(*(np.stack(field) for field in zip(*(s.augment for s in samples), strict=True))),
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def host_batches(
    reader: ShardReader,
    settings: PretrainSettings,
    steps: range,
    *,
    rank: int,
    num_ranks: int,
    pin_memory: bool = False,
) -> Iterator[HostBatch]:
    """This rank's batches for a range of steps, in order; nothing before the first is decoded.

    Raises:
        InputError: a shard or a sample is damaged; found by a worker process, told in one line.
    """
    order = SampleOrder(
        shard_sizes=tuple(shard.samples for shard in reader.manifest.shards),
        seed=settings.seed,
        lanes=settings.data.shuffle_lanes,
        global_batch_size=settings.global_batch_size,
    )
    to_sample = partial(
        make_sample,
        seed=settings.seed,
        data=settings.data,
        augment=settings.augment,
        max_superpixels=reader.manifest.max_superpixels,
    )
    pipeline = wds.DataPipeline(
        RawStream(reader, order, steps, rank=rank, num_ranks=num_ranks),
        wds.map(to_sample),
        wds.batched(settings.global_batch_size // num_ranks, collation_fn=collate, partial=False),
    )
    workers = decoding_workers(settings.data.num_workers)
    loader = DataLoader(pipeline, batch_size=None, collate_fn=_as_it_is, num_workers=workers, pin_memory=pin_memory)
    try:
        yield from loader
    except InputError as error:  # a worker's error comes back with its traceback as text
        raise InputError(str(error).rstrip().rsplit("InputError: ", 1)[-1]) from None
