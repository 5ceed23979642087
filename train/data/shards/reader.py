"""Single samples of a finished set of shards, by the offsets of its indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import IMAGE_MEMBER, META_MEMBER
from pipeline.foundation.errors import InputError
from train.data.shards.files import ShardFiles

T = TypeVar("T")
MAX_GAP = 64 * 1024  # bytes between members that are read along rather than sought over


class RawSample(NamedTuple):
    """A sample as it lies in the shard. `sample_id` is its place in the manifest, the same in every epoch."""

    sample_id: int
    key: str
    members: dict[str, bytes]


class Skipped(NamedTuple):
    """A sample that was to come and could not be read; `shard` and `key` name it, `key` empty where none is known."""

    epoch: int
    sample_id: int
    shard: str
    key: str
    reason: str


class ShardReader:
    """Reads single samples of a finished set of shards by the offsets of its indexes."""

    def __init__(self, files: ShardFiles, manifest: Manifest) -> None:
        self.files, self.manifest = files, manifest
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])

    def place_of(self, sample_id: int) -> tuple[int, int]:
        """Shard and row of a sample."""
        shard = int(np.searchsorted(self._ends, sample_id, side="right"))
        return shard, sample_id - (int(self._ends[shard - 1]) if shard else 0)

    def read(self, sample_id: int, map_name: str = MAIN_MAP) -> RawSample:
        """One sample: its JPEG, json and a label map.

        Args:
            map_name: which label map.
        Raises:
            InputError: names the shard that is missing or damaged, or the sample that has no such member.
        """
        shard, row = self.place_of(sample_id)
        entry = self.files.entry(shard, row)
        needed = (IMAGE_MEMBER, map_member(map_name), META_MEMBER)
        missing = [name for name in needed if name not in entry.members]
        if missing:
            raise InputError(f"{self.name_of(shard)}: sample {entry.key} has no {missing[0]}; run `make shards` again")
        return RawSample(sample_id, entry.key, self._members(shard, {name: entry.members[name] for name in needed}))

    def decoded(self, sample_id: int, decode: Callable[[RawSample], T], map_name: str = MAIN_MAP) -> T:
        """What `decode` makes of a sample. Where it cannot, it may be the shard that has rotted: it is compared again.

        Args:
            decode: raises InputError where the sample is not what it should be.
            map_name: which label map.
        Raises:
            InputError: as `read` and `decode`; or the shard is not what the manifest names any more.
        """
        raw = self.read(sample_id, map_name)
        try:
            return decode(raw)
        except InputError:
            self.files.compare_again(self.place_of(sample_id)[0])  # a copy that has rotted is made again
        return decode(self.read(sample_id, map_name))

    def name_of(self, shard: int) -> str:
        """File name of a shard."""
        return self.manifest.shards[shard].name

    def key_of(self, sample_id: int) -> str:
        """A sample's key; empty where its index cannot be read."""
        try:
            return self.files.entry(*self.place_of(sample_id)).key
        except InputError:
            return ""

    def _members(self, shard: int, spans: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        begin = min(offset for offset, _ in spans.values())
        end = max(offset + size for offset, size in spans.values())
        if end - begin > sum(size for _, size in spans.values()) + MAX_GAP:
            return {name: self.files.read(shard, offset, size) for name, (offset, size) in spans.items()}
        data = self.files.read(shard, begin, end - begin)
        return {name: data[offset - begin : offset - begin + size] for name, (offset, size) in spans.items()}
