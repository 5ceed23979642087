"""Whole shards on this node's own disk: a bounded cache that its processes share.

A copy takes its name when its size and SHA-256 are the manifest's. One that is there already is compared by one process
of the node, which leaves a mark for the others. No link is followed, and nothing is removed but copies of shards.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts.manifest import ShardStats
from pipeline.artifacts.names import ShardName
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own, sync_folder
from train.data.shards.marks import (
    Facts,
    drop_mark,
    facts_at,
    is_believed,
    leave_mark,
    locked,
    make_own_folders,
    mark_of,
    sha256_of_own,
)

ROOM_POLL = 0.05  # seconds
SHARD_NAME: TypeAdapter[str] = TypeAdapter(ShardName)


class WrongContentError(Exception):
    """What was copied is not what the manifest names."""


class ShardCache(NamedTuple):
    """Copies of the shards of one set.

    Attributes:
        folder: on this node's disk, a folder in the one that was given.
        capacity: bytes that the copies may take; those that were used longest ago give way.
        verify: compare SHA-256 with the manifest's; otherwise only sizes.
        recheck_days: after which a copy is compared again; None: never.
    """

    folder: Path
    capacity: int
    verify: bool
    recheck_days: float | None

    def make_folder(self) -> None:
        """Make the folder. Raises InputError where others may write to it, OSError where it cannot be made."""
        make_own_folders(self.folder.parent, self.folder.name)

    def make_ready(self, stats: ShardStats, download: Callable[[Path], str], *, wait: bool) -> Facts:
        """Make the copy of a shard where it is not there, whole; its facts.

        Args:
            download: fills a file with the shard's bytes, has them on disk, and gives their SHA-256.
            wait: for another process that is at it.
        Raises:
            BlockingIOError: another process is at it, and not `wait`. WrongContentError: it cannot be had whole.
            InputError: there is no room for it, or what lies there is not ours.
        """
        path = self.folder / stats.name
        self.make_folder()
        with locked(self.folder / f".{path.name}.lock", wait=wait):
            facts = self._whole(path, stats) or self._copy(stats, path, download, wait=wait)
            with suppress(FileNotFoundError):  # removed already; whoever opens it asks again
                os.utime(path, ns=(time.time_ns(), facts.mtime_ns), follow_symlinks=False)  # see _make_room
        return facts

    def _whole(self, path: Path, stats: ShardStats) -> Facts | None:
        """The facts of the copy that is there; None where there is none, or not a whole one."""
        facts = facts_at(path)
        if facts is None or facts.bytes != stats.bytes:
            return None
        if not self.verify:
            return facts
        mark = mark_of(path, facts, stats.sha256)
        if is_believed(mark, recheck_days=self.recheck_days):
            return facts
        with suppress(OSError):  # a copy that cannot be read is made again
            if sha256_of_own(path) == stats.sha256:
                leave_mark(mark)
                return facts
        drop_mark(mark)
        return None

    def _copy(self, stats: ShardStats, path: Path, download: Callable[[Path], str], *, wait: bool) -> Facts:
        """Copy a shard into the cache under the lock of its name. See `make_ready`."""
        temporary = path.with_name(f".{path.name}.part")  # what a killed process left there is written over
        for attempt in range(2):
            self._reserve(temporary, stats.bytes, wait=wait)
            try:
                digest = download(temporary)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                if error.errno != errno.ENOSPC or attempt:
                    raise InputError(
                        f"{self.folder}: {error.strerror or error}; lower pretrain.data.cache_gb"
                    ) from None
                with self._counting():
                    self._make_room(self.capacity // 2, keep=temporary)
                continue
            os.utime(temporary)  # not the first to give way
            facts = facts_at(temporary)
            if facts and facts.bytes == stats.bytes and (not self.verify or digest == stats.sha256):
                with self._counting():
                    os.replace(temporary, path)
                sync_folder(self.folder)
                if digest == stats.sha256:
                    leave_mark(mark_of(path, facts, stats.sha256))
                return facts
        temporary.unlink()
        raise WrongContentError

    def _reserve(self, temporary: Path, size: int, *, wait: bool) -> None:
        """Take room for a copy by a file of its size; copies that others have under way count, and may have to end."""
        if size > self.capacity:
            raise InputError(f"a shard has {size / 1e9:.3g} GB, more than pretrain.data.cache_gb allows; raise it")
        while True:
            with self._counting():
                if self._make_room(size, keep=temporary):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                    with os.fdopen(open_own(temporary, flags), "wb") as file:
                        file.truncate(size)
                    return
            if not wait:
                raise BlockingIOError
            time.sleep(ROOM_POLL)

    def _counting(self) -> AbstractContextManager[None]:
        """Held while the cache is counted, and while a name in it changes: a renamed file would escape the count."""
        return locked(self.folder / ".room.lock", wait=True)

    def _make_room(self, size: int, *, keep: Path) -> bool:
        """Remove what was used longest ago until there is room; whether there is. What is not ours does not count."""
        found = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                status = file.lstat()
                if file != keep and stat.S_ISREG(status.st_mode) and _is_copy(file.name):
                    found.append((status.st_atime_ns, status.st_size, file))
        total = sum(held for _, held, file in found)
        for _, held, file in sorted(found):
            if total + size <= self.capacity:
                break
            if file.suffix == ".tar" or _is_abandoned(file):
                file.unlink(missing_ok=True)  # whoever has it open goes on reading it
                total -= held
        return total + size <= self.capacity


def _is_copy(name: str) -> bool:
    """Whether the cache calls the copy of a shard so, a whole one or one under way."""
    if name.startswith(".") and name.endswith(".part"):
        name = name[1 : -len(".part")]
    with suppress(ValidationError):
        return bool(SHARD_NAME.validate_python(name))
    return False


def _is_abandoned(file: Path) -> bool:
    """Whether a copy under way is nobody's any more: its process was killed."""
    try:
        with locked(file.with_suffix(".lock"), wait=False):
            return True
    except BlockingIOError:
        return False
