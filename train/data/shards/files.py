"""The bytes of finished shards, from a folder or through the cache. No file is used before it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own
from pipeline.foundation.folders import LocalFolder, folder_at
from train.data.shards.ahead import FetchAhead
from train.data.shards.cache import ShardCache, WrongContentError
from train.data.shards.index import Entry, checked_lines, entry_of
from train.data.shards.marks import (
    Facts,
    comparing,
    default_cache,
    drop_mark,
    facts_at,
    facts_of,
    is_believed,
    leave_mark,
    mark_of,
    marks_folder,
    sha256_of_own,
)

OPEN_FILES = 64
INDEXES = 128
CHUNK = 8 * 2**20  # bytes of one request
FIRST_PAUSE = 0.1  # seconds before the first retry; doubled for each further one
TRAVELLING = ("_folder", "place", "manifest", "is_cached", "cache", "cache_bytes", "verify", "recheck_days", "retries")
T = TypeVar("T")


class ShardFiles:
    """Byte ranges of shards at a path or URL, each shard verified before its first use.

    Args:
        cache: folder on this node's disk that shards are copied into. None: those in a folder are read where they lie,
            those behind a URL go to `default_cache`.
        cache_bytes: what the copies may take; those that were used longest ago give way.
        verify: compare SHA-256 with the manifest's; otherwise only sizes.
        recheck_days: after which a shard that was found whole is compared again; None: never.
        retries: of a read that fails, with growing pauses.
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        manifest: Manifest,
        *,
        cache: Path | None = None,
        cache_bytes: int = 32 * 10**9,
        verify: bool = True,
        recheck_days: float | None = 7.0,
        retries: int = 3,
    ) -> None:
        self._folder = folder_at(place)
        self.place, self.manifest = self._folder.root, manifest
        self.is_cached = cache is not None or not isinstance(self._folder, LocalFolder)
        self.cache = (cache or default_cache()) / manifest.fingerprint[:16]
        self.cache_bytes, self.retries = cache_bytes, retries
        self.verify, self.recheck_days = verify, recheck_days
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lines = lru_cache(maxsize=INDEXES)(self._read_index)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._ready: dict[int, Facts] = {}  # shard → the very file that was found whole
        self._doubted: set[int] = set()
        self._opening = threading.Lock()
        self._ahead = FetchAhead(lambda shard: self._make_ready(shard, wait=False))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in TRAVELLING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def room(self) -> int:
        """How many shards can be made ready ahead of need."""
        largest = max(shard.bytes for shard in self.manifest.shards)
        return max(1, self.cache_bytes // largest) if self.is_cached else len(self.manifest.shards)

    @property
    def _copies(self) -> ShardCache:
        return ShardCache(self.cache, self.cache_bytes, self.verify, self.recheck_days)

    def require_own_folders(self) -> None:
        """Make the folders of copies and marks.

        Raises:
            InputError: others may write to one of them, or there is none for copies.
        """
        try:
            if self.is_cached:
                self._copies.make_folder()
        except OSError as error:
            raise InputError(f"pretrain.data.cache: {self.cache}: {error.strerror}; choose another folder") from None
        if self.verify:
            marks_folder()

    def problems(self) -> dict[int, str]:
        """What is missing or of another size than the manifest states, by shard; one listing, no data is read."""
        sizes = self._retried(self._folder.sizes, self.place)
        found = {}
        for number, shard in enumerate(self.manifest.shards):
            missing = next((name for name in (shard.name, shard.index_name) if name not in sizes), None)
            if missing:
                found[number] = f"{self.place}/{missing} is missing; run `make shards` again to remake it"
            elif sizes[shard.name] != shard.bytes:
                found[number] = self._wrong_size(number, sizes[shard.name])
        return found

    def entry(self, shard: int, row: int) -> Entry:
        """Where the members of a sample lie. Raises InputError where the index is not the one the manifest names."""
        return entry_of(self._lines(shard)[row])

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard. Raises InputError, naming the shard, where it is damaged, or cannot be read or fetched."""
        if self._pid != os.getpid():  # threads and locks do not come along into a forked process
            self._forget()
        try:
            some = lambda: os.pread(self._descriptor(shard), size, offset)  # noqa: E731
            data = self._retried(some, self._name(shard), between=lambda: self._close_of(shard))
            if len(data) != size:
                raise InputError(f"{self._name(shard)} is cut short; run `make shards` again")
        except InputError:
            self._doubt(shard)
            raise
        return data

    def compare_again(self, shard: int) -> None:
        """Compare a shard once more though it was found whole: what it holds cannot be used. Once a process.

        A copy that has rotted is made again. Nothing where `verify` is off.

        Raises:
            InputError: it is not what the manifest names any more.
        """
        if not self.verify or shard in self._doubted:
            return
        self._doubted.add(shard)
        self._doubt(shard)
        self._retried(lambda: self._make_ready(shard, wait=True), self._name(shard))

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Make these shards ready in the background, in this order, instead of any named before.

        What goes wrong there is kept quiet: `read` meets it again when the shard is needed.
        """
        if not self.is_cached and not self.verify:
            return
        if self._pid != os.getpid():
            self._forget()
        self._ahead.want([shard for shard in shards if shard not in self._ready])

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        with self._opening:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        for _ in range(3):  # another process may drop or replace the file between its becoming ready and its opening
            path = self._make_ready(shard, wait=True)
            with suppress(FileNotFoundError), self._opening:
                descriptor = open_own(path)
                if facts_of(os.fstat(descriptor)) == self._ready.get(shard) and shard not in self._open:
                    self._open[shard] = descriptor
                    if len(self._open) > OPEN_FILES:
                        os.close(self._open.popitem(last=False)[1])
                else:
                    os.close(descriptor)
                if shard in self._open:
                    return self._open[shard]
            self._ready.pop(shard, None)
        remedy = "raise pretrain.data.cache_gb" if self.is_cached else "end what writes there"
        raise InputError(f"{self._name(shard)} is removed or replaced again and again; {remedy}")

    def _close_of(self, shard: int) -> None:
        with self._opening, suppress(OSError):
            if shard in self._open:
                os.close(self._open.pop(shard))

    def _doubt(self, shard: int) -> None:
        """Have a shard compared before it is used again, by this process and by others."""
        self._close_of(shard)
        self._ready.pop(shard, None)
        path = self._path(shard)
        with suppress(InputError, OSError):
            if facts := facts_at(path):
                drop_mark(mark_of(path, facts, self.manifest.shards[shard].sha256))

    def _make_ready(self, shard: int, *, wait: bool) -> Path:
        """A local file known to be whole. Raises BlockingIOError where another process is at it, unless `wait`."""
        path = self._path(shard)
        known = self._ready.get(shard)
        if known is None or known != facts_at(path):
            self._ready[shard] = self._copied(shard, wait=wait) if self.is_cached else self._checked(shard, wait=wait)
        return path

    def _copied(self, shard: int, *, wait: bool) -> Facts:
        stats = self.manifest.shards[shard]
        try:
            return self._copies.make_ready(stats, lambda file: self._download(stats.name, stats.bytes, file), wait=wait)
        except WrongContentError:
            raise InputError(self._wrong_content(shard)) from None

    def _checked(self, shard: int, *, wait: bool) -> Facts:
        """Of a shard that is read where it lies."""
        stats, path = self.manifest.shards[shard], self._path(shard)
        facts = facts_at(path)
        if facts is None:
            raise InputError(f"{path} is missing; run `make shards` again to remake it")
        if facts.bytes != stats.bytes:
            raise InputError(self._wrong_size(shard, facts.bytes))
        if self.verify:
            mark = mark_of(path, facts, stats.sha256)
            with comparing(mark, wait=wait):
                if is_believed(mark, recheck_days=self.recheck_days):
                    return facts
                if self._retried(lambda: sha256_of_own(path), self._name(shard)) != stats.sha256:
                    drop_mark(mark)
                    raise InputError(self._wrong_content(shard))
                leave_mark(mark)
        return facts

    def _download(self, name: str, size: int, temporary: Path) -> str:
        digest = hashlib.sha256()
        with os.fdopen(open_own(temporary, os.O_WRONLY), "wb") as file:
            for offset in range(0, size, CHUNK):
                length = min(CHUNK, size - offset)
                read = lambda o=offset, n=length: self._folder.read_range(name, o, n)  # noqa: E731
                data = self._retried(read, f"{self.place}/{name}")
                digest.update(data)
                file.write(data)
                if len(data) != length:
                    break
            file.truncate()
            os.fsync(file.fileno())  # the mark must not outlive the bytes
        return digest.hexdigest()

    def _read_index(self, shard: int) -> list[bytes]:
        stats = self.manifest.shards[shard]
        where = f"{self.place}/{stats.index_name}"
        data = self._retried(lambda: self._folder.read(stats.index_name), where)
        return checked_lines(data, stats, where=where)

    def _retried(self, action: Callable[[], T], name: str, between: Callable[[], None] | None = None) -> T:
        for attempt in range(self.retries + 1):
            try:
                return action()
            except FileNotFoundError:
                raise InputError(f"{name} is missing; run `make shards` again to remake it") from None
            except OSError as error:
                if attempt == self.retries or error.errno == errno.ENOSPC:
                    reason = error.strerror or error
                    raise InputError(f"{name} cannot be read, tried {attempt + 1} times: {reason}") from None
                time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5))
                if between:
                    between()
        raise AssertionError

    def _path(self, shard: int) -> Path:
        name = self.manifest.shards[shard].name
        return self.cache / name if self.is_cached else Path(self.place) / name

    def _name(self, shard: int) -> str:
        return f"{self.place}/{self.manifest.shards[shard].name}"

    def _wrong_size(self, shard: int, size: int) -> str:
        expected = self.manifest.shards[shard].bytes
        return f"{self._name(shard)} has {size} bytes, not {expected}; run `make shards` again"

    def _wrong_content(self, shard: int) -> str:
        return (
            f"{self._name(shard)} is not what the manifest names (SHA-256); `make verify SHARDS=… REPAIR=1` remakes it"
        )
