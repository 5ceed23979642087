"""Shards to samples: each place of the epoch gets its sample or, where that is damaged and may be skipped, the next.

What is read is data: members are found by the offsets of the shards' indexes, and no name in a shard is ever a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data.order import SampleOrder
from train.data.shards.reader import RawSample, ShardReader, Skipped
from train.data.views import Sample, make_sample

MAX_SUBSTITUTES = 4096  # damaged places in a row after which a set is taken for lost
LOOK_AHEAD_STEPS = 256


class Slot(NamedTuple):
    """A place of an epoch, and the sample that belongs there."""

    epoch: int
    place: int
    sample_id: int


@dataclass(frozen=True)
class SampleMaker:
    """Slot → sample.

    strictly: JPEGs are decoded on the host even where the device decodes them, and only whole ones come.
    """

    reader: ShardReader
    order: SampleOrder
    settings: PretrainSettings
    strictly: bool = False

    def __call__(self, slot: Slot) -> Sample:
        """The slot's own sample or, where `on_damage: skip` lets it, that of the next place that has a whole one.

        Which one that is depends on the set alone, so that no rank or worker sees another substitute.

        Raises:
            InputError: the sample is damaged, and is not to be skipped.
        """
        epoch, _, own = slot
        try:
            return self._make(own, epoch)._replace(slot=slot)
        except InputError as error:
            if self.settings.data.on_damage == "fail":
                raise
            name = self.reader.name_of(self.reader.place_of(own)[0])
            skipped = Skipped(epoch, own, name, self.reader.key_of(own), str(error))
            return self._substitute(slot, error)._replace(skipped=skipped, slot=slot)

    def _substitute(self, slot: Slot, first: InputError) -> Sample:
        tries = min(MAX_SUBSTITUTES, self.order.places_per_epoch - 1)
        places = (slot.place + 1 + np.arange(tries)) % self.order.places_per_epoch
        for sample_id in self.order.sample_ids(slot.epoch, places).tolist():
            try:
                return self._make(sample_id, slot.epoch)
            except InputError:
                continue
        raise InputError(f"none of {tries + 1} samples in a row can be read, the first: {first}")

    def _make(self, sample_id: int, epoch: int) -> Sample:
        map_name = self.settings.superpixel_map(epoch)

        def decode(raw: RawSample) -> Sample:
            try:
                return make_sample(
                    raw.members,
                    key=raw.key,
                    sample_id=sample_id,
                    epoch=epoch,
                    seed=self.settings.seed,
                    data=self.settings.data,
                    augment=self.settings.augment,
                    max_superpixels=self.reader.manifest.map_stats(map_name).max_superpixels,
                    map_name=map_name,
                    strictly=self.strictly,
                )
            except InputError as error:
                raise InputError(f"{self.reader.name_of(self.reader.place_of(sample_id)[0])}: {error}") from None

        return self.reader.decoded(sample_id, decode, map_name)


class SlotStream(IterableDataset[Slot]):
    """The slots of one rank for a range of steps.

    Worker w of W yields the batches of every W-th step, so that a loader which takes whole batches from its workers
    in turn gives them in order, whatever W is. Nothing before the first step is touched.
    """

    def __init__(
        self, reader: ShardReader, order: SampleOrder, steps: range, *, rank: int, num_ranks: int, node_ranks: range
    ) -> None:
        self.reader, self.order, self.steps = reader, order, steps
        self.rank, self.num_ranks, self.node_ranks = rank, num_ranks, node_ranks

    def __iter__(self) -> Iterator[Slot]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        ahead = _LookAhead(self)
        for step in self.steps[first::stride]:
            ahead.moved_to(step)
            epoch = step // self.order.steps_per_epoch
            places = self.order.places(step, rank=self.rank, num_ranks=self.num_ranks)
            ids = self.order.sample_ids(epoch, np.arange(places.start, places.stop)).tolist()
            for place, sample_id in zip(places, ids, strict=True):
                yield Slot(epoch, place, sample_id)


@dataclass
class _LookAhead:
    """Tells the files which shards come next, as many as they can hold."""

    stream: SlotStream
    _until: int = -1
    _last_need: dict[int, int] = field(default_factory=dict)  # shard → step, in the order of first need

    def moved_to(self, step: int) -> None:
        stream, files = self.stream, self.stream.reader.files
        room = files.room
        self._until = max(self._until, step)
        end = min(step + LOOK_AHEAD_STEPS, stream.steps.stop)
        while self._until < end and len(self._last_need) < room:
            for shard in self._shards_of(self._until):
                self._last_need[shard] = self._until
            self._until += 1
        self._last_need = {shard: last for shard, last in self._last_need.items() if last >= step}
        files.fetch_ahead(list(self._last_need))

    def _shards_of(self, step: int) -> list[int]:
        """What this node needs: its processes share the files, so each looks ahead for all of them."""
        order, stream = self.stream.order, self.stream
        epoch, inside = divmod(step, order.steps_per_epoch)
        steps = range(inside, inside + 1)
        shards = order.shards_between(epoch, steps, ranks=stream.node_ranks, num_ranks=stream.num_ranks)
        numbers: list[int] = shards.tolist()
        return numbers
