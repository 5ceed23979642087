"""The bytes of finished shards, from a folder or through the cache. No file is used before it is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import sha256_of
from pipeline.foundation.folders import LocalFolder, folder_at
from train.data.shards.cache import ShardCache, WrongContentError, default_cache, leave_mark, locked, mark_of

OPEN_FILES = 64
INDEXES = 128
CHUNK = 8 * 2**20  # bytes of one request
FIRST_PAUSE = 0.1  # seconds before the first retry; doubled for each further one
FETCHERS = 4  # threads a process
T = TypeVar("T")


class Entry(NamedTuple):
    """One sample of a shard: its key, and per member (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


class ShardFiles:
    """Byte ranges of shards at a path or URL, each shard verified before its first use.

    Args:
        cache: folder on this node's disk that shards are copied into. None: those in a folder are read where they lie,
            those behind a URL go to `default_cache`.
        cache_bytes: what the copies may take; those that were used longest ago give way.
        verify: compare SHA-256 with the manifest's; otherwise only sizes.
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
        retries: int = 3,
    ) -> None:
        self._folder = folder_at(place)
        self.place, self.manifest = self._folder.root, manifest
        self.is_cached = cache is not None or not isinstance(self._folder, LocalFolder)
        self.cache = (cache or default_cache()) / manifest.fingerprint[:16]
        self.cache_bytes, self.verify, self.retries = cache_bytes, verify, retries
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lines = lru_cache(maxsize=INDEXES)(self._read_index)
        self._open: OrderedDict[int, int] = OrderedDict()
        self._ready: set[int] = set()
        self._opening = threading.Lock()
        self._wanted: list[int] = []
        self._fetchers: list[threading.Thread] = []
        self._wake = threading.Condition()

    def __getstate__(self) -> dict[str, Any]:
        named = ("_folder", "place", "manifest", "is_cached", "cache", "cache_bytes", "verify", "retries")
        return {name: getattr(self, name) for name in named}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def room(self) -> int:
        """How many shards can be made ready ahead of need."""
        largest = max(shard.bytes for shard in self.manifest.shards)
        return max(1, self.cache_bytes // largest) if self.is_cached else len(self.manifest.shards)

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
        found = json.loads(self._lines(shard)[row])
        return Entry(found["key"], found["members"])

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """Bytes of a shard. Raises InputError, naming the shard, where it is damaged, or cannot be read or fetched."""
        if self._pid != os.getpid():  # threads and locks do not come along into a forked process
            self._forget()
        data = self._retried(
            lambda: os.pread(self._descriptor(shard), size, offset), self._name(shard), self._close_of(shard)
        )
        if len(data) != size:
            raise InputError(f"{self._name(shard)} is cut short; run `make shards` again")
        return data

    def fetch_ahead(self, shards: Sequence[int]) -> None:
        """Make these shards ready in the background, in this order, instead of any named before.

        What goes wrong there is kept quiet: `read` meets it again when the shard is needed.
        """
        if not self.is_cached and not self.verify:
            return
        if self._pid != os.getpid():
            self._forget()
        with self._wake:
            self._wanted = [shard for shard in shards if shard not in self._ready]
            self._wake.notify_all()
        if self._wanted and not self._fetchers:
            self._fetchers = [threading.Thread(target=self._fetch, daemon=True) for _ in range(FETCHERS)]
            for thread in self._fetchers:
                thread.start()

    def close(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _fetch(self) -> None:
        while True:
            with self._wake:
                while not self._wanted:
                    self._wake.wait()
                shard = self._wanted.pop(0)
            with suppress(InputError, OSError, BlockingIOError):
                self._make_ready(shard, wait=False)

    def _descriptor(self, shard: int) -> int:
        with self._opening:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        for _ in range(3):  # another process may drop the file between its becoming ready and its opening
            path = self._make_ready(shard, wait=True)
            with suppress(FileNotFoundError), self._opening:
                if shard not in self._open:
                    self._open[shard] = os.open(path, os.O_RDONLY)
                    if len(self._open) > OPEN_FILES:
                        os.close(self._open.popitem(last=False)[1])
                return self._open[shard]
            self._ready.discard(shard)
        raise InputError(f"{self._name(shard)} is removed again and again; raise pretrain.data.cache_gb")

    def _close_of(self, shard: int) -> Callable[[], None]:
        def close() -> None:
            with self._opening, suppress(OSError):
                if shard in self._open:
                    os.close(self._open.pop(shard))

        return close

    def _make_ready(self, shard: int, *, wait: bool) -> Path:
        """A local file known to be whole. Raises BlockingIOError where another process is at it, unless `wait`."""
        path = self._path(shard)
        if shard in self._ready and (not self.is_cached or path.exists()):
            return path
        if self.is_cached:
            self._copied(shard, wait=wait)
        else:
            self._check_in_place(path, shard, wait=wait)
        self._ready.add(shard)
        return path

    def _copied(self, shard: int, *, wait: bool) -> None:
        stats = self.manifest.shards[shard]
        copies = ShardCache(self.cache, self.cache_bytes, self.verify)
        try:
            copies.make_ready(stats, lambda file: self._download(stats.name, stats.bytes, file), wait=wait)
        except WrongContentError:
            raise InputError(self._wrong_content(shard)) from None

    def _check_in_place(self, path: Path, shard: int, *, wait: bool) -> None:
        stats = self.manifest.shards[shard]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise InputError(f"{path} is missing; run `make shards` again to remake it") from None
        if size != stats.bytes:
            raise InputError(self._wrong_size(shard, size))
        if not self.verify:
            return
        mark = mark_of(path, stats.sha256)
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
        can_mark = os.access(mark.parent, os.W_OK)  # otherwise every process checks for itself
        with locked(mark.with_suffix(".lock"), wait=wait) if can_mark else nullcontext():
            if mark.exists():
                return
            if self._retried(lambda: sha256_of(path), self._name(shard)) != stats.sha256:
                raise InputError(self._wrong_content(shard))
            if can_mark:
                leave_mark(mark)
                mark.with_suffix(".lock").unlink(missing_ok=True)

    def _download(self, name: str, size: int, temporary: Path) -> str:
        digest = hashlib.sha256()
        with temporary.open("r+b") as file:
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
        """The lines of an index, checked; parsed, those of 128 shards would take 100 MB of each process."""
        stats = self.manifest.shards[shard]
        where = f"{self.place}/{stats.index_name}"
        data = self._retried(lambda: self._folder.read(stats.index_name), where)
        wrong = InputError(f"{where} is not the index that the manifest names; run `make shards` again")
        if hashlib.sha256(data).hexdigest() != stats.index_sha256:
            raise wrong
        try:
            entries = ShardIndex.decode(data).entries
        except ValueError:
            raise wrong from None
        if len(entries) != stats.samples:
            raise wrong
        for entry in entries:
            if any(offset < 0 or size < 0 or offset + size > stats.bytes for offset, size in entry.members.values()):
                raise InputError(f"{where}: sample {entry.key} lies outside of its tar; run `make shards` again")
        return data.splitlines()

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
