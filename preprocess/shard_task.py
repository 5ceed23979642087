"""One entry of the plan → one tar and its index. Knows nothing of who runs it, or where."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.files import atomic_writer, sha256_of, write_atomic
from pipeline.artifacts.manifest import IndexEntry, QuarantineEntry, ShardIndex, ShardStats
from pipeline.artifacts.sample import (
    IMAGE_MEMBER,
    META_MEMBER,
    SUPERPIXELS_MEMBER,
    SampleMeta,
    encode_label_map,
    source_name,
)
from preprocess.images import Unreadable, read_image
from preprocess.plan import ShardTask
from preprocess.superpixels import superpixels_of

# What is wrong with one file, as against a disk or a network that fails: that stops the job, which can be resumed.
FILE_ERRORS = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
)


class ShardResult(BaseModel):
    """What making a shard gave: its statistics, the images left out, the largest num_superpixels in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stats: ShardStats
    quarantine: tuple[QuarantineEntry, ...]
    max_superpixels: int


class _Sample(NamedTuple):
    members: dict[str, bytes]
    num_superpixels: int


def make_shard(task: ShardTask, *, folder: Path) -> ShardResult:
    """Write `task.name` and its index into `folder`, each whole or not at all, the index last.

    Raises:
        InputError: an image cannot be read for a reason that lies outside it. OSError: writing failed.
    """
    quarantine: list[QuarantineEntry] = []
    entries: list[IndexEntry] = []
    largest = 0
    tar_path = folder / task.name
    with atomic_writer(tar_path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, path in enumerate(task.images):
            key = f"{task.first_key + number:09d}"
            try:
                sample = _sample(task, path, class_name=task.classes[number])
            except Unreadable as error:
                quarantine.append(QuarantineEntry(source=source_name(path), reason=str(error)))
                continue
            members = {name: _append(tar, f"{key}.{name}", data) for name, data in sample.members.items()}
            entries.append(IndexEntry(key=key, members=members))
            largest = max(largest, sample.num_superpixels)
    index_path = tar_path.with_suffix(".index")
    write_atomic(index_path, ShardIndex(entries=tuple(entries)).encode())
    stats = ShardStats(
        name=task.name,
        samples=len(entries),
        bytes=tar_path.stat().st_size,
        sha256=sha256_of(tar_path),
        index_sha256=sha256_of(index_path),
    )
    return ShardResult(stats=stats, quarantine=tuple(quarantine), max_superpixels=largest)


def _sample(task: ShardTask, path: bytes, *, class_name: str | None) -> _Sample:
    image = read_image(_read(os.path.join(os.fsencode(task.root), path)), quality=task.settings.quality)
    label_map = superpixels_of(image.pixels, settings=task.settings.superpixels)
    meta = SampleMeta(
        source=source_name(path),
        width=image.pixels.shape[1],
        height=image.pixels.shape[0],
        num_superpixels=int(label_map.max()) + 1,
        class_name=class_name,
        changed=image.changed,
    )
    members = {
        IMAGE_MEMBER: image.jpeg,
        SUPERPIXELS_MEMBER: encode_label_map(label_map),
        META_MEMBER: meta.encode(),
    }
    return _Sample(members, meta.num_superpixels)


def _read(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in FILE_ERRORS:
            raise Unreadable(f"cannot be read: {error.strerror}") from None
        raise InputError(
            f"{os.fsdecode(path)}: reading failed ({error.strerror}); run the same command again to go on"
        ) from None


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> tuple[int, int]:
    """Add a member with constant metadata (TarInfo's own: time 0, owner 0, mode 0644); its (offset, size)."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset, len(data)
