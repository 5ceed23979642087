"""One entry of the plan → one tar and its index. Knows nothing of who runs it, or where."""

from __future__ import annotations

import errno
import re
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.fingerprint import differences
from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import IndexEntry, QuarantineEntry, ShardIndex, ShardStats
from pipeline.artifacts.sample import (
    IMAGE_MEMBER,
    META_MEMBER,
    SampleMeta,
    encode_label_map,
    source_name,
)
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, is_url
from preprocess.config import MAX_SEGMENTS, ShardSettings
from preprocess.shards.images import StoredImage, Unreadable, read_image
from preprocess.shards.plan import ShardTask, versions_for
from preprocess.shards.superpixels import label_maps_of
from preprocess.sources.listing import Source
from preprocess.sources.reader import Reader

# What is wrong with one file, as against a disk or a network that fails: that stops the job, which can be resumed.
FILE_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
)
READ_AHEAD_BYTES = 64 * 2**20
OURS = re.compile(rf"{IMAGE_MEMBER}|{META_MEMBER}|superpixels(-[a-z0-9_]+)?\.png", re.IGNORECASE)
MAX_MEMBER_NAME = 80  # of the 100 bytes of a ustar name


class ShardResult(BaseModel):
    """What making a shard gave: its statistics, the images left out, the largest number of ids of each map.

    `max_superpixels` is by name of the map; `seconds` is how long it took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stats: ShardStats
    quarantine: tuple[QuarantineEntry, ...]
    max_superpixels: dict[str, int]
    seconds: float


class PackedSample(NamedTuple):
    """The members of a sample by name, and the number of ids of each of its maps."""

    members: dict[str, bytes]
    num_superpixels: dict[str, int]


class Watch:
    """Is told what `make_shard` does; this one does nothing about it."""

    def image(self, number: int) -> None:
        """The image of this number is touched next."""

    def images_done(self) -> None:
        """Every image has been touched; the shard is not published yet."""


def make_shard(
    task: ShardTask,
    *,
    folder: Folder,
    bad: Mapping[int, str] | None = None,
    watch: Watch | None = None,
) -> ShardResult:
    """Write `task.name` and its index into `folder`, each whole or not at all, the index last.

    Args:
        bad: reason by number of images that are not to be touched.
        watch: told which image comes next.
    Raises:
        InputError: an image cannot be read for a reason that lies outside it. OSError: writing failed.
    """
    _check_versions(task)
    start, watch = time.monotonic(), watch or Watch()
    quarantine: list[QuarantineEntry] = []
    entries: list[IndexEntry] = []
    largest = dict.fromkeys((MAIN_MAP, *task.settings.maps), 0)
    with folder.writer(task.name) as file, Reader(task.root, task.kind, task.column) as reader:
        tar = _Tar(file)
        for number, data in _in_order(task, reader, bad or {}, watch):
            source = task.sources[number]
            key = f"{task.first_key + number:09d}"
            try:
                sample = pack_sample(data, source, reader=reader, settings=task.settings)
            except Unreadable as error:
                quarantine.append(QuarantineEntry(source=source_name(source.name), reason=str(error)))
                continue
            entries.append(
                IndexEntry(key=key, members={m: tar.add(f"{key}.{m}", d) for m, d in sample.members.items()})
            )
            largest = {name: max(most, sample.num_superpixels[name]) for name, most in largest.items()}
        watch.images_done()
        tar.finish()
    index = ShardIndex(entries=tuple(entries)).encode()
    stats = ShardStats(
        name=task.name,
        samples=len(entries),
        bytes=tar.size,
        sha256=tar.digest.hexdigest(),
        index_sha256=sha256(index).hexdigest(),
    )
    folder.write(stats.index_name, index)
    seconds = time.monotonic() - start
    return ShardResult(stats=stats, quarantine=tuple(quarantine), max_superpixels=largest, seconds=seconds)


def pack_sample(data: bytes | Unreadable, source: Source, *, reader: Reader, settings: ShardSettings) -> PackedSample:
    """The members of one image, from the bytes of its file. Raises Unreadable."""
    if isinstance(data, Unreadable):
        raise data
    try:
        return _packed(data, source, reader, settings)
    except MemoryError:
        raise Unreadable(f"needs more memory than max_memory_mb={settings.max_memory_mb}") from None


def _packed(data: bytes, source: Source, reader: Reader, settings: ShardSettings) -> PackedSample:
    wanted = {MAIN_MAP: settings.superpixels, **settings.maps}
    side = max(made.size for made in wanted.values())
    image = read_image(data, quality=settings.quality, max_pixels=settings.max_pixels, min_side=side)
    maps = label_maps_of(image.pixels, wanted, extent=image.extent)
    counts = {name: int(label_map.max()) + 1 for name, label_map in maps.items()}
    if counts[MAIN_MAP] > MAX_SEGMENTS:
        raise Unreadable(f"{counts[MAIN_MAP]} superpixels, more than {MAX_SEGMENTS}")
    members = {IMAGE_MEMBER: image.jpeg}
    members |= {map_member(name): encode_label_map(label_map) for name, label_map in maps.items()}
    members[META_MEMBER] = _meta(source, image, counts[MAIN_MAP]).encode()
    for part in source.others:
        name = f"source.{part.name}" if OURS.fullmatch(part.name) else part.name
        if len(name.encode(errors="surrogateescape")) > MAX_MEMBER_NAME:
            raise Unreadable(f"member {name!r}: the name is too long for a tar")
        members[name] = reader.read_part(source, part)
    return PackedSample(members, counts)


def _meta(source: Source, image: StoredImage, num_superpixels: int) -> SampleMeta:
    return SampleMeta(
        source=source_name(source.name),
        width=image.width,
        height=image.height,
        num_superpixels=num_superpixels,
        class_name=source.class_name,
        changed=image.changed,
    )


def _check_versions(task: ShardTask) -> None:
    """That this machine has the driver's versions; another's would make other bytes."""
    if changed := differences(versions_for(task.settings), task.versions):
        raise InputError(
            f"{task.name}: this worker's packages are not the driver's ({'; '.join(changed)}); install the same ones "
            "on every node"
        )


def _in_order(
    task: ShardTask, reader: Reader, bad: Mapping[int, str], watch: Watch
) -> Iterator[tuple[int, bytes | Unreadable]]:
    """Number and bytes of every image, read ahead where they come through a network."""

    def read(number: int) -> bytes | Unreadable:
        return Unreadable(bad[number]) if number in bad else read_source(reader, task.sources[number], task.settings)

    if not is_url(task.root):
        for number in range(len(task.sources)):
            watch.image(number)
            yield number, read(number)
        return
    with ThreadPoolExecutor(task.settings.read_ahead) as threads:
        for number, coming in _ahead(task, lambda number: threads.submit(read, number)):
            data = coming.result()
            watch.image(number)
            yield number, data


def _ahead(
    task: ShardTask, submit: Callable[[int], Future[bytes | Unreadable]]
) -> Iterator[tuple[int, Future[bytes | Unreadable]]]:
    """Every image's future in order; as many are under way as `read_ahead` and READ_AHEAD_BYTES allow, at least one."""
    coming: deque[tuple[int, Future[bytes | Unreadable]]] = deque()
    waiting = iter(range(len(task.sources)))
    under_way = 0
    while True:
        while not coming or (len(coming) < task.settings.read_ahead and under_way < READ_AHEAD_BYTES):
            if (number := next(waiting, None)) is None:
                break
            coming.append((number, submit(number)))
            under_way += task.sources[number].size
        if not coming:
            return
        under_way -= task.sources[coming[0][0]].size
        yield coming.popleft()


def read_source(reader: Reader, source: Source, settings: ShardSettings) -> bytes | Unreadable:
    """The bytes of an image, or why they cannot be had.

    Raises:
        InputError: what failed is not the file but the disk or the network.
    """
    if source.size > settings.max_memory_mb * 2**20:
        return Unreadable(f"file of {source.size:,} bytes, more than max_memory_mb={settings.max_memory_mb}")
    try:
        return reader.read(source)
    except MemoryError:
        return Unreadable(f"needs more memory than max_memory_mb={settings.max_memory_mb}")
    except OSError as error:
        if error.errno in FILE_ERRORS or isinstance(error, FileNotFoundError | PermissionError):
            return Unreadable(f"cannot be read: {error.strerror or type(error).__name__}")
        where = source_name(source.name)
        raise InputError(
            f"{where}: reading failed ({error.strerror or error}); run the same command again to go on"
        ) from None


def _header(name: bytes, size: int) -> bytes:
    """A ustar header: what `tarfile.TarInfo` gives, at a fifth of the time."""
    head = name.ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0" + b"%011o\0" % size + b"00000000000\0"
    tail = b" 0".ljust(102, b"\0") + b"ustar\00000".ljust(255, b"\0")
    return head + b"%06o\0" % (sum(head) + sum(tail) + 7 * 32) + tail


class _Tar:
    """Writes members one after the other, with constant metadata (TarInfo's own: time 0, owner 0, mode 0644)."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self.digest = sha256()

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Append a member; its (offset, size)."""
        self._write(_header(name.encode(errors="surrogateescape"), len(data)))
        offset = self.size
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset, len(data)

    def finish(self) -> None:
        """Two empty blocks, and as many more as fill a record."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.size % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
