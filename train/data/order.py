"""Which sample comes when: a pure function of (shard sizes, seed, epoch); no data is read, no rank or worker enters.

An epoch lays all shards end to end in random order, each begun at a random sample (and wrapped around), and cuts that
row of N samples into lanes of equal length, which are read side by side: place t of the epoch takes the next sample of
lane t mod lanes. So 32 consecutive samples, one clustering group, come from 32 places of the set, and each lane reads
its shards from one end to the other. Step s of the epoch takes places s·B … s·B + B − 1, its ranks consecutive parts.

With `lane_groups` = G, each global batch has G equal parts, and each part lanes of its own, over a G-th of the row:
ranks that take one part read a G-th of the shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from train.config.pretrain import PretrainSettings

Places = Int[np.ndarray, " n"]


class Location(NamedTuple):
    """Where samples lie: number of the shard in the manifest, row in it; int64 (n,)."""

    shard: np.ndarray
    row: np.ndarray


class _Row(NamedTuple):
    """An epoch's shards end to end: which one comes when, where each ends, and the sample that it begins with."""

    shards: np.ndarray
    ends: np.ndarray
    first_rows: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SampleOrder:
    """Each sample at most once an epoch, in whole global batches.

    What is left over at the lanes' ends, less than a global batch, is another part of the set each epoch. `sample_id`
    is a sample's place in the manifest: the samples of the shards before its own, plus its row.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    lanes: int
    global_batch_size: int
    lane_groups: int = 1

    def __post_init__(self) -> None:
        assert self.lanes % self.lane_groups == 0, (self.lanes, self.lane_groups)
        assert self.global_batch_size % self.lane_groups == 0, (self.global_batch_size, self.lane_groups)

    @classmethod
    def of(cls, settings: PretrainSettings, shard_sizes: tuple[int, ...]) -> SampleOrder:
        """The order of a run."""
        return cls(
            shard_sizes=shard_sizes,
            seed=settings.seed,
            lanes=settings.data.shuffle_lanes,
            global_batch_size=settings.global_batch_size,
            lane_groups=settings.data.lane_groups,
        )

    @property
    def num_samples(self) -> int:
        """N, the samples of the set."""
        return sum(self.shard_sizes)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def places_per_epoch(self) -> int:
        """Samples that an epoch uses."""
        return self.steps_per_epoch * self.global_batch_size

    def places(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> range:
        """One rank's places in the epoch, for a step of the run: consecutive, so that groups stay whole."""
        local = self.global_batch_size // num_ranks
        first = step % self.steps_per_epoch * self.global_batch_size + rank * local
        return range(first, first + local)

    def batch(self, step: int, *, rank: int = 0, num_ranks: int = 1) -> np.ndarray:
        """Sample ids, int64 (local batch,), of one rank in a step of the run."""
        places = self.places(step, rank=rank, num_ranks=num_ranks)
        return self.sample_ids(step // self.steps_per_epoch, np.arange(places.start, places.stop))

    def sample_ids(self, epoch: int, places: Places) -> Places:
        """Sample ids, int64 (n,), of places of an epoch."""
        shard, row = self.locate(epoch, places)
        ids: Places = _starts(self.shard_sizes)[shard] + row
        return ids

    def locate(self, epoch: int, places: Places) -> Location:
        """Shard and row of places of an epoch."""
        position = self._positions(places)
        shards, ends, first_rows = _row(self.shard_sizes, self.seed, epoch)
        number = np.searchsorted(ends, position, side="right")
        shard = shards[number]
        size = np.asarray(self.shard_sizes)[shard]
        return Location(shard, (position - (ends[number] - size) + first_rows[number]) % size)

    def _positions(self, places: Places) -> Places:
        """Positions in the epoch's row of samples."""
        part_size, lanes = self.global_batch_size // self.lane_groups, self.lanes // self.lane_groups
        step, slot = np.divmod(places, self.global_batch_size)
        part = slot // part_size
        begin = part * self.num_samples // self.lane_groups
        length = (part + 1) * self.num_samples // self.lane_groups - begin
        turn, lane = np.divmod(step * part_size + slot % part_size, lanes)
        positions: Places = begin + lane * (length // lanes) + np.minimum(lane, length % lanes) + turn
        return positions

    def shards_between(self, epoch: int, steps: range, *, ranks: range, num_ranks: int) -> np.ndarray:
        """Numbers of the shards that some ranks read in some steps of an epoch, ascending."""
        local = self.global_batch_size // num_ranks
        slots = np.arange(ranks.start * local, ranks.stop * local)
        found = [np.unique(self.locate(epoch, s * self.global_batch_size + slots).shard) for s in steps]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


@lru_cache(maxsize=4)
def _starts(shard_sizes: tuple[int, ...]) -> np.ndarray:
    return np.cumsum([0, *shard_sizes[:-1]])


@lru_cache(maxsize=4)
def _row(shard_sizes: tuple[int, ...], seed: int, epoch: int) -> _Row:
    rng = np.random.default_rng([seed, epoch])
    shards = rng.permutation(np.flatnonzero(shard_sizes))
    sizes = np.asarray(shard_sizes)[shards]
    return _Row(shards, np.cumsum(sizes), rng.integers(0, sizes))
