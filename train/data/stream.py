"""Shards to samples: which sample comes when is a function of (manifest, seed, epoch), nothing is lost in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.files import sha256_of
from pipeline.artifacts.manifest import Manifest, ShardIndex

OPEN_SHARDS = 64


class RawSample(NamedTuple):
    """A sample as it lies in the shard. `sample_id` is its place in the manifest, the same in every epoch."""

    sample_id: int
    key: str
    members: dict[str, bytes]


def epoch_order(shard_sizes: tuple[int, ...], *, seed: int, epoch: int, lanes: int) -> np.ndarray:
    """The order of one epoch: every sample once, as sample ids, int64 (sum of sizes,).

    The shards, shuffled, are read `lanes` at a time: each from its first sample to its last, the lanes merged in
    random order. Reading stays sequential within a shard, and the order knows nothing of ranks or workers.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.cumsum([0, *shard_sizes[:-1]])
    shards = rng.permutation(len(shard_sizes))
    return np.concatenate(
        [
            _merged_lanes([(int(starts[s]), shard_sizes[s]) for s in shards[first : first + lanes]], rng)
            for first in range(0, len(shards), lanes)
        ]
    )


def _merged_lanes(lanes: list[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """Sequences of (start, length) merged into one: which lane comes next is random, each keeps its own order."""
    lane_of = rng.permutation(np.repeat(np.arange(len(lanes)), [length for _, length in lanes]))
    merged = np.empty(len(lane_of), dtype=np.int64)
    for lane, (start, length) in enumerate(lanes):
        merged[lane_of == lane] = np.arange(start, start + length)
    return merged


class ShardReader:
    """Reads single samples of a finished set of shards by the offsets of its indexes.

    Raises:
        InputError: a tar or an index is missing, or is not what the manifest says it is.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._index = lru_cache(maxsize=OPEN_SHARDS)(self._read_index)
        self._files: dict[int, int] = {}

    def __getstate__(self) -> tuple[Path, Manifest]:
        return self.folder, self.manifest

    def __setstate__(self, state: tuple[Path, Manifest]) -> None:
        ShardReader.__init__(self, *state)

    def read(self, sample_id: int) -> RawSample:
        """One sample. Raises InputError, naming shard and key, where its bytes are not all there."""
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        row = sample_id - (int(self._ends[shard - 1]) if shard else 0)
        entry = self._index(shard).entries[row]
        tar = self._open(shard)
        members = {}
        for name, (offset, size) in entry.members.items():
            data = os.pread(tar, size, offset)
            if len(data) != size:
                raise InputError(f"{self._tar_path(shard)}: {entry.key}.{name} is cut short; run `make shards` again")
            members[name] = data
        return RawSample(sample_id, entry.key, members)

    def check_files(self) -> None:
        """That every tar and index is there with the size that the manifest states; reads no data."""
        for number, shard in enumerate(self.manifest.shards):
            for path in (self._tar_path(number), self.folder / shard.index_name):
                if not path.is_file():
                    raise InputError(f"{path} is missing; run `make shards` again to remake it")
            self._check_size(number)

    def _tar_path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard].name

    def _check_size(self, shard: int) -> None:
        size, expected = self._tar_path(shard).stat().st_size, self.manifest.shards[shard].bytes
        if size != expected:
            raise InputError(f"{self._tar_path(shard)} has {size} bytes, not {expected}; run `make shards` again")

    def _read_index(self, shard: int) -> ShardIndex:
        stats = self.manifest.shards[shard]
        path = self.folder / stats.index_name
        index = ShardIndex.read(self.folder, stats.index_name)
        if sha256_of(path) != stats.index_sha256 or len(index.entries) != stats.samples:
            raise InputError(f"{path} is not the index that the manifest names; run `make shards` again")
        return index

    def _open(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._check_size(shard)
            self._files[shard] = os.open(self._tar_path(shard), os.O_RDONLY)
        return self._files[shard]


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Which samples are in which step's global batch. Positions need no data to be read.

    What the last, incomplete batch of an epoch would hold is left out; the next epoch leaves out others.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    lanes: int
    global_batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return sum(self.shard_sizes) // self.global_batch_size

    def batch(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> np.ndarray:
        """Sample ids, int64, of one rank in a step of the run: consecutive ones, so that groups stay whole."""
        epoch, position = divmod(step, self.steps_per_epoch)
        local = self.global_batch_size // num_ranks
        first = position * self.global_batch_size + rank * local
        return self._epoch(epoch)[first : first + local]

    def _epoch(self, epoch: int) -> np.ndarray:
        return _cached_epoch_order(self.shard_sizes, self.seed, epoch, self.lanes)


@lru_cache(maxsize=2)
def _cached_epoch_order(shard_sizes: tuple[int, ...], seed: int, epoch: int, lanes: int) -> np.ndarray:
    return epoch_order(shard_sizes, seed=seed, epoch=epoch, lanes=lanes)


class RawStream(IterableDataset[dict[str, Any]]):
    """Raw samples of one rank for a range of steps, as the dicts that webdataset's stages take.

    Worker w of W yields the batches of every W-th step, so that a loader which takes whole batches from its workers
    in turn gives them in order, whatever W is.
    """

    def __init__(self, reader: ShardReader, order: SampleOrder, steps: range, *, rank: int, num_ranks: int) -> None:
        self.reader, self.order, self.steps, self.rank, self.num_ranks = reader, order, steps, rank, num_ranks

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in self.steps[first::stride]:
            for sample_id in self.order.batch(step, rank=self.rank, num_ranks=self.num_ranks).tolist():
                sample = self.reader.read(sample_id)
                yield {
                    "__key__": sample.key,
                    "sample_id": sample_id,
                    "epoch": step // self.order.steps_per_epoch,
                    "members": sample.members,
                }
