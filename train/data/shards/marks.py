"""What was found whole on this node: one mark a file, believed for some days, in a folder that no other may write."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own, refuse_link, write_atomic

DAY = 86400.0  # seconds
CLOCK_SKEW = 60.0  # seconds that the clock of a disk behind the network may be ahead of ours


class Facts(NamedTuple):
    """By what a file that was found whole is known again."""

    device: int
    inode: int
    bytes: int
    mtime_ns: int


def facts_of(status: os.stat_result) -> Facts:
    """The facts of a file by its status."""
    return Facts(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def facts_at(path: Path) -> Facts | None:
    """The facts of the plain file at a path, None where there is none. Raises InputError for anything else there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        refuse_link(path)
        raise InputError(f"{path}: no plain file; move it away and run the same command again")
    return facts_of(status)


def sha256_of_own(path: Path) -> str:
    """Hex SHA-256 of a plain file that r2o keeps. Raises as `open_own`."""
    with os.fdopen(open_own(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache() -> Path:
    """$R2O_CACHE, or r2o in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("R2O_CACHE") or Path(home) / "r2o")


def make_own_folders(given: Path, name: str) -> Path:
    """The folder of this name in the given one. What is missing of both is made, for this user alone.

    Raises:
        InputError: it is a link, or another user owns one of them or may write there. OSError: it cannot be made.
    """
    inner = given / name
    for folder in reversed([path for path in (inner, *inner.parents) if not os.path.lexists(path)]):
        folder.mkdir(mode=0o700, exist_ok=True)
    _require_own(given, {os.geteuid(), 0}, f"give a folder of your own, as {given / 'r2o'}")
    refuse_link(inner)
    _require_own(inner, {os.geteuid()}, "move it away")
    return inner


def _require_own(folder: Path, owners: set[int], remedy: str) -> None:
    status = folder.stat()
    # Whoever owns the link to a folder decides which folder it is.
    if not owners.issuperset({status.st_uid, folder.lstat().st_uid}):
        raise InputError(f"{folder}: another user owns this folder of the shard cache; {remedy}")
    if status.st_mode & 0o022:
        raise InputError(
            f"{folder}: other users may write to this folder of the shard cache; `chmod go-w {folder}`, or {remedy}"
        )


def marks_folder() -> Path:
    """Where marks lie; where it cannot be made there are none, and every process compares for itself.

    Raises:
        InputError: others may write there.
    """
    with suppress(OSError):
        return make_own_folders(default_cache(), "verified")
    return default_cache() / "verified"


def mark_of(path: Path, facts: Facts, sha256: str) -> Path:
    """The file which says that this very file, unchanged, was found whole. Raises as `marks_folder`."""
    device, inode, size, mtime_ns = facts
    named = (str(path.absolute()), device, inode, size, mtime_ns, sha256)
    return marks_folder() / hashlib.sha256(repr(named).encode()).hexdigest()


def is_believed(mark: Path, *, recheck_days: float | None) -> bool:
    """Whether there is a mark, not older than that. One from the future is old: the clock was set back."""
    with suppress(OSError):
        facts = facts_at(mark)
        if facts is None or recheck_days is None:
            return facts is not None
        return -CLOCK_SKEW <= time.time() - facts.mtime_ns / 1e9 < recheck_days * DAY
    return False


def leave_mark(mark: Path) -> None:
    """Leave a mark, or renew it; where that cannot be, the next process compares again."""
    with suppress(OSError):
        write_atomic(mark, "")


def drop_mark(mark: Path) -> None:
    """Have the file compared again by whoever uses it next."""
    with suppress(OSError):
        mark.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a file; raises BlockingIOError where another process holds it, unless `wait`."""
    with os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


@contextmanager
def comparing(mark: Path, *, wait: bool) -> Iterator[None]:
    """Held by the one process that compares a file; where no marks can be left, every process does. As `locked`."""
    if not os.access(mark.parent, os.W_OK):
        yield
        return
    lock = mark.with_suffix(".lock")
    with locked(lock, wait=wait):
        yield
        lock.unlink(missing_ok=True)
