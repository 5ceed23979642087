"""Whole shards on this node's own disk: a bounded cache that its processes share, and marks of what was verified.

A copy takes its name when its size and SHA-256 are the manifest's. A file that is there already is compared once, by
one process of the node, which leaves a mark for the others.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.manifest import ShardStats
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import sha256_of, write_atomic

ROOM_POLL = 0.05  # seconds


class WrongContentError(Exception):
    """What was copied is not what the manifest names."""


def default_cache() -> Path:
    """$R2O_CACHE, or r2o in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("R2O_CACHE") or Path(home) / "r2o")


class ShardCache(NamedTuple):
    """Copies of the shards of one set.

    Attributes:
        folder: on this node's disk.
        capacity: bytes that the copies may take; those that were used longest ago give way.
        verify: compare SHA-256 with the manifest's; otherwise only sizes.
    """

    folder: Path
    capacity: int
    verify: bool

    def make_ready(self, stats: ShardStats, download: Callable[[Path], str], *, wait: bool) -> Path:
        """The copy of a shard, whole; made where it is not there.

        Args:
            download: fills a file with the shard's bytes and gives their SHA-256.
            wait: for another process that is at it.
        Raises:
            BlockingIOError: another process is at it, and not `wait`. WrongContentError: it cannot be had whole.
            InputError: there is no room for it.
        """
        path = self.folder / stats.name
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / f".{path.name}.lock", wait=wait):
            if not self._is_whole(path, stats):
                self._copy(stats, path, download, wait=wait)
            with suppress(FileNotFoundError):  # removed already; whoever opens it asks again
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # last used; see _make_room
        return path

    def _is_whole(self, path: Path, stats: ShardStats) -> bool:
        if not path.exists() or path.stat().st_size != stats.bytes:
            return False
        mark = mark_of(path, stats.sha256)
        if not self.verify or mark.exists():
            return True
        if sha256_of(path) != stats.sha256:
            return False
        leave_mark(mark)
        return True

    def _copy(self, stats: ShardStats, path: Path, download: Callable[[Path], str], *, wait: bool) -> None:
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
            if temporary.stat().st_size == stats.bytes and (not self.verify or digest == stats.sha256):
                with self._counting():
                    os.utime(temporary)  # not the first to give way
                    os.replace(temporary, path)
                    leave_mark(mark_of(path, stats.sha256))
                return
        temporary.unlink()
        raise WrongContentError

    def _reserve(self, temporary: Path, size: int, *, wait: bool) -> None:
        """Take room for a copy by a file of its size; copies that others have under way count, and may have to end."""
        if size > self.capacity:
            raise InputError(f"a shard has {size / 1e9:.3g} GB, more than pretrain.data.cache_gb allows; raise it")
        while True:
            with self._counting():
                if self._make_room(size, keep=temporary):
                    with temporary.open("wb") as file:
                        file.truncate(size)
                    return
            if not wait:
                raise BlockingIOError
            time.sleep(ROOM_POLL)

    def _counting(self) -> AbstractContextManager[None]:
        """Held while the cache is counted, and while a name in it changes: a renamed file would escape the count."""
        return locked(self.folder / ".room.lock", wait=True)

    def _make_room(self, size: int, *, keep: Path) -> bool:
        """Remove what was used longest ago until there is room; whether there is."""
        found = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                stat = file.stat()
                found.append((stat.st_atime_ns, stat.st_size, file))
        total = sum(held for _, held, file in found if file != keep)
        for _, held, file in sorted(found):
            if total + size <= self.capacity:
                break
            if file != keep and (file.suffix == ".tar" or _is_abandoned(file)):
                file.unlink(missing_ok=True)  # whoever has it open goes on reading it
                total -= held
        return total + size <= self.capacity


def mark_of(path: Path, sha256: str) -> Path:
    """The file whose existence says that this very file, unchanged, has been found whole."""
    stat = path.stat()
    facts = (str(path.absolute()), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, sha256)
    return default_cache() / "verified" / hashlib.sha256(repr(facts).encode()).hexdigest()


def leave_mark(mark: Path) -> None:
    """Leave a mark; where that cannot be, the next process compares again."""
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, "")


def _is_abandoned(file: Path) -> bool:
    """Whether a copy under way is nobody's any more: its process was killed."""
    if file.suffix != ".part":
        return False
    try:
        with locked(file.with_suffix(".lock"), wait=False):
            return True
    except BlockingIOError:
        return False


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file; raises BlockingIOError where another process holds it, unless `wait`."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
