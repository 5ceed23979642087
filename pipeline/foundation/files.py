"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
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
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path` so that a reader sees all of it or the former file."""
    with atomic_writer(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def is_temporary(path: Path) -> bool:
    """Whether `path` is what a killed `atomic_writer` left behind."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


@contextmanager
def only_holder(path: Path, *, otherwise: str) -> Iterator[None]:
    """Hold the lock file `path` (by flock: it ends with the process); a file system without locks gives it to all.

    Raises:
        InputError: another process holds it; `otherwise` is the message.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(path, otherwise)
    while not _is_at(path, descriptor):  # somebody removed it between our opening and our locking
        _let_go([descriptor])
        descriptor = _locked(path, otherwise)
    try:
        yield
    finally:
        _let_go([descriptor])


_HELD: set[int] = set()  # descriptors of locks


def _locked(path: Path, otherwise: str) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _HELD.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP):
            return descriptor
        _let_go([descriptor])
        if isinstance(error, BlockingIOError):
            raise InputError(otherwise) from None
        raise
    return descriptor


def _let_go(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        if descriptor in _HELD:
            _HELD.remove(descriptor)
            os.close(descriptor)


# A forked child that outlives us, such as a decoding worker, would go on holding what we held.
os.register_at_fork(after_in_child=lambda: _let_go([*_HELD]))


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
