"""One holder at a time.

On this machine by `flock`, which ends with the process. Behind a URL by a lease, for a folder of shards: a file that
its holder renews. Whoever comes later and sees it renewed gives up; one that sees it stand still takes over.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own
from pipeline.foundation.folders import Folder, LocalFolder

LOCK_NAME = "lock"
RENEW_SECONDS = 5.0
STALE_SECONDS = 20.0
SETTLE_SECONDS = 1.0


@contextmanager
def held(folder: Folder, *, shards: str) -> Iterator[None]:
    """Hold `folder` (which must exist) against every other job.

    Args:
        shards: what is held, for the message.
    Raises:
        InputError: another job holds it.
    """
    if isinstance(folder, LocalFolder):
        lock = only_holder(folder.path / LOCK_NAME, otherwise=_taken(shards))
    else:
        lock = _lease(folder, shards)
    with lock:
        yield


@contextmanager
def _lease(folder: Folder, shards: str) -> Iterator[None]:
    _wait_until_stale(folder, shards)
    token, stop = os.urandom(8).hex(), threading.Event()
    folder.write(LOCK_NAME, _lease_text(token, 0))
    sleep(SETTLE_SECONDS)  # who writes at the same time is seen here: the last one holds it
    if (found := _lease_at(folder)) is None or found[0] != token:
        raise InputError(_taken(shards))

    def renew() -> None:
        count = 0
        while not stop.wait(RENEW_SECONDS):
            count += 1
            try:
                folder.write(LOCK_NAME, _lease_text(token, count))
            except Exception as error:  # the next renewal may succeed
                print(f"r2o: lease of {shards} not renewed: {error}", file=sys.stderr)

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        folder.remove(LOCK_NAME)


def _wait_until_stale(folder: Folder, shards: str) -> None:
    first, start = _lease_at(folder), monotonic()
    if first is None:
        return
    print(f"{shards}: held by a job; waiting {STALE_SECONDS:.0f} s to see whether it is alive", file=sys.stderr)
    while monotonic() - start < STALE_SECONDS:
        sleep(RENEW_SECONDS / 4)
        now = _lease_at(folder)
        if now is None:
            return
        if now != first:
            raise InputError(_taken(shards))


def _lease_text(token: str, count: int) -> str:
    return json.dumps({"token": token, "count": count}) + "\n"


def _lease_at(folder: Folder) -> tuple[str, int] | None:
    """Token and count of the lease; None where there is none."""
    try:
        lease = json.loads(folder.read(LOCK_NAME))
        return str(lease["token"]), int(lease["count"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return "", 0


def _taken(shards: str) -> str:
    return f"{shards}: another job is making these shards; wait until it ends"


@contextmanager
def only_holder(path: Path, *, otherwise: str) -> Iterator[None]:
    """Hold the lock file `path` (by flock: it ends with the process); a file system without locks gives it to all.

    Raises:
        InputError: another process holds it (`otherwise` is the message), or `path` is a link.
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
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT)
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
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
