"""One entry of the plan → one tar and its index. Knows nothing of who runs it, or where."""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.fingerprint import differences
from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import IndexEntry, QuarantineEntry, ShardIndex, ShardStats
from pipeline.artifacts.sample import (
    IMAGE_MEMBER,
    META_MEMBER,
    SampleMeta,
    decode_jpeg,
    encode_label_map,
    source_name,
)
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import NotAFileError
from pipeline.foundation.folders import Folder, is_url
from preprocess.config import MAX_SEGMENTS, ShardSettings
from preprocess.shards.images import StoredImage, Unreadable, read_image
from preprocess.shards.plan import ShardTask, versions_for
from preprocess.shards.superpixels import label_maps_of
from preprocess.shards.tar_writer import TarWriter, names_of_others
from preprocess.sources.listing import Part, Source
from preprocess.sources.reader import Reader

# What is wrong with one file, as against a disk or a network that fails: that stops the job, which can be resumed.
FILE_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
)
CANNOT_BE_READ = "cannot be read: "  # how the reason begins where the next try may find the image again
PAUSES = (0.1, 0.4, 1.0)  # seconds before reading is tried again where a disk or a network failed
READ_AHEAD_BYTES = 64 * 2**20
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
        InputError: an image cannot be read for a reason that lies outside it, has changed since it was listed, or is
            not the one that `task.expected` was made from. OSError: writing failed.
    """
    _check_versions(task)
    start, watch = time.monotonic(), watch or Watch()
    quarantine: list[QuarantineEntry] = []
    entries: list[IndexEntry] = []
    largest = dict.fromkeys((MAIN_MAP, *task.settings.maps), 0)
    with folder.writer(task.name) as file, Reader(task.root, task.kind, task.column) as reader:
        tar = TarWriter(file)
        for number, data in _in_order(task, reader, bad or {}, watch):
            source = task.sources[number]
            key = f"{task.first_key + number:09d}"
            try:
                sample = pack_sample(data, source, reader=reader, task=task)
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
        if task.expected not in (None, stats):  # while the tar has not taken its name
            raise InputError(
                f"{folder.root}/{task.name}: its images are not those that it was made from (the shard that is there "
                "was left); give the images of that time, or --overwrite to make all again"
            )
    folder.write(stats.index_name, index)
    seconds = time.monotonic() - start
    return ShardResult(stats=stats, quarantine=tuple(quarantine), max_superpixels=largest, seconds=seconds)


def pack_sample(data: bytes | Unreadable, source: Source, *, reader: Reader, task: ShardTask) -> PackedSample:
    """The members of one image of a task, from the bytes of its file. Raises Unreadable; InputError as `make_shard`."""
    if isinstance(data, Unreadable):
        raise data
    try:
        return _packed(data, source, reader, task)
    except MemoryError:
        raise Unreadable(f"needs more memory than max_memory_mb={task.settings.max_memory_mb}") from None


def _packed(data: bytes, source: Source, reader: Reader, task: ShardTask) -> PackedSample:
    settings, is_hashed = task.settings, task.format_version > 1
    wanted = {MAIN_MAP: settings.superpixels, **settings.maps}
    # A map of the native size decodes for itself, so that the others are the same with it and without.
    side = max((made.size for made in wanted.values() if not made.is_native), default=1)
    image = read_image(data, quality=settings.quality, max_pixels=settings.max_pixels, min_side=side)
    maps = label_maps_of(image.pixels, wanted, extent=image.extent, native=lambda: decode_jpeg(image.jpeg))
    counts = {name: int(label_map.max()) + 1 for name, label_map in maps.items()}
    if counts[MAIN_MAP] > MAX_SEGMENTS:
        raise Unreadable(f"{counts[MAIN_MAP]} superpixels, more than {MAX_SEGMENTS}")
    members = {IMAGE_MEMBER: image.jpeg}
    members |= {map_member(name): encode_label_map(label_map) for name, label_map in maps.items()}
    members[META_MEMBER] = _meta(source, image, counts[MAIN_MAP], data if is_hashed else None).encode()
    names = names_of_others([part.name for part in source.others], fold_case=is_hashed)
    for name, part in zip(names, source.others, strict=True):
        if len(name.encode()) > MAX_MEMBER_NAME:
            raise Unreadable(f"member {name!r}: the name is too long for a tar")
        members[name] = _read_part(reader, source, part)
    return PackedSample(members, counts)


def _meta(source: Source, image: StoredImage, num_superpixels: int, read: bytes | None) -> SampleMeta:
    """The json member; of the bytes that were `read`, where they are given, it names size and hash."""
    return SampleMeta(
        source=source_name(source.name),
        width=image.width,
        height=image.height,
        num_superpixels=num_superpixels,
        class_name=source.class_name,
        changed=image.changed,
        source_bytes=None if read is None else len(read),
        source_sha256=None if read is None else sha256(read).hexdigest(),
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
        InputError: what failed is not the file but the disk or the network, the folder that it was listed in is gone,
            or the file has changed since.
    """
    if source.size > settings.max_memory_mb * 2**20:
        return Unreadable(f"file of {source.size:,} bytes, more than max_memory_mb={settings.max_memory_mb}")
    try:
        return _patiently(lambda: reader.read(source))
    except MemoryError:
        return Unreadable(f"needs more memory than max_memory_mb={settings.max_memory_mb}")
    except OSError as error:
        if source.was_there and (folder := reader.lost_folder(source)):
            raise InputError(
                f"{folder}: gone since its images were listed (is it mounted?); bring it back and run the same command "
                "again"
            ) from None
        if _is_about_one_file(error):
            return Unreadable(f"{CANNOT_BE_READ}{error.strerror or type(error).__name__}")
        raise _reading_failed(source, error) from None


def _read_part(reader: Reader, source: Source, part: Part) -> bytes:
    """What lies beside an image. It lies in the same archive, so that what fails is never the part alone."""
    try:
        return _patiently(lambda: reader.read_part(source, part))
    except OSError as error:
        raise _reading_failed(source, error) from None


def _patiently(read: Callable[[], bytes]) -> bytes:
    """What `read` gives, tried again a few times where it is not about one file that it fails."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if _is_about_one_file(error):
                raise
        time.sleep(pause)
    return read()


def _is_about_one_file(error: OSError) -> bool:
    return error.errno in FILE_ERRORS or isinstance(error, FileNotFoundError | PermissionError | NotAFileError)


def _reading_failed(source: Source, error: OSError) -> InputError:
    what = error.strerror or error
    return InputError(f"{source_name(source.name)}: reading failed ({what}); run the same command again to go on")
