"""Shards to host batches: our exact stream, webdataset's stages, torch's worker processes."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from pipeline.foundation.errors import InputError
from train.config.batches import batch_bytes, decoding_workers
from train.config.data import DataSettings
from train.config.pretrain import PretrainSettings
from train.data.augment import AugmentParams
from train.data.order import SampleOrder
from train.data.shards.reader import ShardReader, Skipped
from train.data.stream import SampleMaker, SlotStream
from train.data.views import Sample

SHARED_MEMORY = Path("/dev/shm")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
KEPT_BYTES = 32 * 2**20  # the most that M_MMAP_THRESHOLD takes


class HostBatch(NamedTuple):
    """A local batch as the workers make it; pixels are uint8, channels last in memory.

    `augment` holds NumPy arrays with leading axes (B, V). Where the device decodes, `images` and `views` are absent,
    and `jpegs` holds the files one after the other, each up to its `jpeg_ends`. `skipped`: the samples that were to
    come and could not be read. `slots`: epoch, place and the sample id that belongs there, for each row.
    """

    sample_id: Int[Tensor, " b"]
    images: UInt8[Tensor, "b 3 h w"] | None
    superpixels: UInt8[Tensor, "b s s"] | Int[Tensor, "b s s"]
    views: UInt8[Tensor, "b 2 3 vh vw"] | None
    boxes: Int[Tensor, "b 2 4"]
    crop_box: Float[Tensor, "b 2 4"]
    flipped: Bool[Tensor, "b 2"]
    augment: AugmentParams
    view_superpixels: UInt8[Tensor, "b 2 vh vw"] | Int[Tensor, "b 2 vh vw"] | None = None
    jpegs: UInt8[Tensor, " bytes"] | None = None
    jpeg_ends: Int[Tensor, " b"] | None = None
    skipped: tuple[Skipped, ...] = ()
    slots: Int[Tensor, "b 3"] | None = None


def collate(samples: Sequence[Sample]) -> HostBatch:
    """Samples stacked to a batch; in a worker process, by torch, straight into memory shared with the trainer."""
    geometry = [sample.geometry for sample in samples]
    batch = HostBatch(
        sample_id=torch.tensor([sample.sample_id for sample in samples]),
        images=None,
        superpixels=_label_maps([sample.superpixels for sample in samples]),
        views=None,
        boxes=torch.tensor([g.boxes for g in geometry]),
        crop_box=torch.from_numpy(np.stack([g.crop_box for g in geometry])),
        flipped=torch.from_numpy(np.stack([g.flipped for g in geometry])),
        augment=AugmentParams(*(np.stack(values) for values in zip(*(g.augment for g in geometry), strict=True))),
        skipped=tuple(sample.skipped for sample in samples if sample.skipped),
        slots=torch.tensor([sample.slot for sample in samples]),
    )
    cropped = [sample.view_superpixels for sample in samples if sample.view_superpixels is not None]
    if cropped:
        batch = batch._replace(view_superpixels=_label_maps(cropped))
    jpegs = [sample.jpeg for sample in samples if sample.jpeg is not None]
    if jpegs:
        ends = torch.tensor([len(jpeg) for jpeg in jpegs]).cumsum(0)
        joined = default_collate([torch.frombuffer(bytearray(b"".join(jpegs)), dtype=torch.uint8)])[0]
        return batch._replace(jpegs=joined, jpeg_ends=ends)
    images = default_collate([sample.image for sample in samples if sample.image is not None])
    views = default_collate([view for sample in samples if sample.views is not None for view in sample.views])
    return batch._replace(
        images=images.permute(0, 3, 1, 2), views=views.unflatten(0, (len(samples), 2)).permute(0, 1, 4, 2, 3)
    )


def _label_maps(maps: Sequence[np.ndarray]) -> Tensor:
    """uint8 while all ids fit, int32 otherwise."""
    kind = np.uint8 if all(labels.dtype == np.uint8 for labels in maps) else np.int32
    collated: Tensor = default_collate([torch.from_numpy(labels.astype(kind)) for labels in maps])
    return collated


def keep_memory() -> None:
    """Let glibc keep what is freed for the next image, instead of giving its pages back and faulting them in again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # macOS and musl have none
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_TOP_PAD, KEPT_BYTES)


def _begin_worker(worker: int) -> None:
    """Leave the trainer's process group, so that a signal to the group, Slurm's or a terminal's, ends no worker."""
    os.setpgid(0, 0)
    keep_memory()


def _as_it_is(batch: Any) -> Any:
    return batch


def host_batches(
    reader: ShardReader,
    settings: PretrainSettings,
    steps: range,
    *,
    rank: int,
    num_ranks: int,
    local_batch_size: int | None = None,
    node_ranks: range | None = None,
    pin_memory: bool = False,
) -> Iterator[HostBatch]:
    """This rank's batches for a range of steps of the run, in order; nothing before the first is read.

    Args:
        local_batch_size: a part of the rank's share of a global batch; all of it where not given.
        node_ranks: the ranks that share this node's disk; this one alone where not given.
    Raises:
        InputError: a shard or a sample is damaged, or a worker process was killed; told in one line.
    """
    order = SampleOrder.of(settings, tuple(shard.samples for shard in reader.manifest.shards))
    local_batch_size = local_batch_size or settings.global_batch_size // num_ranks
    pipeline = wds.DataPipeline(
        SlotStream(
            reader, order, steps, rank=rank, num_ranks=num_ranks, node_ranks=node_ranks or range(rank, rank + 1)
        ),
        wds.map(SampleMaker(reader, order, settings)),
        wds.batched(local_batch_size, collation_fn=collate, partial=False),
    )
    data = settings.data
    workers = decoding_workers(data.num_workers)
    if workers:
        _require_shared_memory(data, local_batch_size, workers)
    loader = DataLoader(
        pipeline,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=data.prefetch_batches if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # whose numbers nobody uses; without it, it would draw from the trainer's
    )
    try:
        yield from loader
    except InputError as error:  # a worker's error comes back with its traceback as text
        raise InputError(str(error).rstrip().rsplit("InputError: ", 1)[-1]) from None
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):  # an error that a worker raised begins otherwise
            raise
        raise InputError(
            f"{str(error).partition('.')[0]}: a decoding process was killed, as a rule for want of memory; lower "
            "pretrain.data.num_workers or prefetch_batches"
        ) from error


def whole_samples(reader: ShardReader, settings: PretrainSettings) -> SampleMaker:
    """Makes the sample of a slot as a run does whose host decodes, damaged JPEGs refused or replaced alike."""
    order = SampleOrder.of(settings, tuple(shard.samples for shard in reader.manifest.shards))
    return SampleMaker(reader, order, settings, strictly=True)


def _require_shared_memory(data: DataSettings, local_batch_size: int, workers: int) -> None:
    """Workers hand over batches through /dev/shm; containers often have 64 MB of it, and beyond it comes SIGBUS."""
    if not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = batch_bytes(data, local_batch_size) * workers * data.prefetch_batches
    if needed > free:
        raise InputError(
            f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, but {workers} decoding processes × {data.prefetch_batches} "
            f"batches need {needed / 1e6:.0f} MB; enlarge it (docker run --shm-size=…; Kubernetes: an emptyDir with "
            "medium: Memory) or lower pretrain.data.num_workers or prefetch_batches"
        )
