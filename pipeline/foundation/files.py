"""Files that are either whole or not there, and never links to elsewhere."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.foundation.errors import InputError


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit fsync it and rename it to `path`, else remove it."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that a reader sees all of it or the former file."""
    with atomic_writer(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def append_whole(path: Path, data: bytes) -> None:
    """Append all of `data`, on disk when this returns, or nothing. Raises OSError, and as `open_own` does."""
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file:
        length = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), length)
            raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on disk, so that a rename outlives a power cut. Nothing where that cannot be."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def refuse_link(path: Path) -> None:
    """Raises InputError where `path` is a link: what r2o keeps lies where its name says. A missing one is none."""
    if path.is_symlink():
        raise InputError(f"{path}: a link, and r2o follows none there; put the file or folder itself there")


def open_own(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """`os.open` of a plain file that r2o keeps; its descriptor, closed in programs that are started.

    Raises:
        InputError: it is a link, a pipe or a device. OSError: as `os.open`.
    """
    try:
        return open_regular(path, flags | os.O_NOFOLLOW, mode)
    except NotAFileError:
        raise InputError(f"{path}: no plain file; move it away and run the same command again") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            refuse_link(path)
        raise


def read_own(path: Path) -> bytes:
    """All bytes of a plain file that r2o keeps. Raises as `open_own`."""
    with os.fdopen(open_own(path), "rb") as file:
        return file.read()


class NotAFileError(OSError):
    """What was to be read is a pipe, a device or a socket, which may have no end."""


def open_regular(path: str | bytes | Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """`os.open` of a plain file, links followed, which waits for nothing; closed in programs that are started.

    Raises:
        OSError: as `os.open`; IsADirectoryError; NotAFileError.
    """
    try:
        # Without O_NONBLOCK a pipe would be waited for; of a plain file it changes nothing.
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode)
    except OSError as error:
        # A socket cannot be opened; a device whose driver is gone neither.
        if error.errno in (errno.ENXIO, errno.ENODEV) and os.path.exists(path) and not os.path.isfile(path):
            raise _not_a_file(path) from None
        raise
    if stat.S_ISREG(kind := os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise _not_a_file(path)


def stamp_of(status: os.stat_result) -> int:
    """What of a file changes when its content does: its time of change, as 64 bits without sign; 0 says nothing."""
    return status.st_mtime_ns & (2**64 - 1)


def _not_a_file(path: str | bytes | Path) -> NotAFileError:
    return NotAFileError(errno.EINVAL, "not a regular file", path)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a killed `atomic_writer` left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
