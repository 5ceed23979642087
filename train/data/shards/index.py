"""The index of a shard, compared with the manifest before it is used."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from pipeline.artifacts.manifest import ShardIndex, ShardStats
from pipeline.foundation.errors import InputError


class Entry(NamedTuple):
    """One sample of a shard: its key, and per member (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


def entry_of(line: bytes) -> Entry:
    """The entry that a line of a checked index holds."""
    found = json.loads(line)
    return Entry(found["key"], found["members"])


def checked_lines(data: bytes, stats: ShardStats, *, where: str) -> list[bytes]:
    """The lines of an index, checked; parsed, those of 128 shards would take 100 MB of each process.

    Args:
        where: its path or URL, for the message.
    Raises:
        InputError: it is not the index that the manifest names.
    """
    wrong = InputError(f"{where} is not the index that the manifest names; run `make shards` again")
    if hashlib.sha256(data).hexdigest() != stats.index_sha256:
        raise wrong
    try:
        index = ShardIndex.decode(data)
    except ValueError:
        raise wrong from None
    if len(index.entries) != stats.samples:
        raise wrong
    if beyond := index.beyond(stats.bytes):
        raise InputError(f"{where}: sample {beyond[0]} lies outside of its tar; run `make shards` again")
    return data.splitlines()
