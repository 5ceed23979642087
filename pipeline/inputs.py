"""Folders that stages read from outside, by content: names and SHA-256 of their files decide, wherever they lie.

What was read once is known by size and times from then on. WORK/.r2o/inputs.jsonl keeps it, a batch of files a line,
each line with its checksum. A line that is damaged or was cut short by a kill is passed over: its files are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.names import Sha256
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError, os_errors_named
from pipeline.foundation.files import atomic_writer, open_own
from pipeline.foundation.progress import Progress
from pipeline.stages import EVALUATIONS

READERS = 4  # threads
CHUNK = 2**20  # bytes of one read
BATCH, BATCH_BYTES = 1000, 4 * 10**9  # files of one line, and what a kill may cost
# A file that is changed so soon after it was changed may keep its times, at the grain of some file systems.
GRAIN_NS = 2 * 10**9


class Listed(NamedTuple):
    """A name below a folder. `size` is None where a link leads nowhere; of plain files alone there is a content."""

    name: str
    size: int | None
    mtime_ns: int
    ctime_ns: int
    is_plain: bool


class Known(NamedTuple):
    """The content of a file when it had this size and these times."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: Sha256


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Any  # a name that is not UTF-8 has surrogates, which pydantic's `str` refuses
    files: dict[Any, Known]


class Peek(NamedTuple):
    """What is known of a folder without reading: its digest, None where it hangs on the content of `unread` files."""

    digest: str | None
    unread: int


Contents = dict[str, dict[str, Known]]  # by folder and name


def list_folder(folder: Path, *, but: Path) -> list[Listed]:
    """Every file below a folder, sorted folder by folder.

    Links are followed, a folder that is met again is not.

    Args:
        but: a folder that is left out, as what is made there is no input.
    Raises:
        InputError: there is no such folder, or something in it cannot be looked at.
    """
    if not folder.is_dir():
        given = ", ".join(f"workflow.{name}" for name in ("images", *EVALUATIONS, "frozen"))
        raise InputError(f"{folder}: no such folder (given as {given} or on the command line)")
    found, seen = [], set()
    if but.is_dir() and not but.samefile(folder):
        seen.add((but.stat().st_dev, but.stat().st_ino))
    with os_errors_named(folder):
        for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders.sort()
            inside = os.path.relpath(root, folder)
            found += [_listed(root, "" if inside == "." else inside, name) for name in sorted(names)]
    return found


def _raise(error: OSError) -> None:
    raise error


def _listed(root: str, inside: str, name: str) -> Listed:
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
    except OSError:
        if not os.path.islink(path):
            raise
        return Listed(os.path.join(inside, name), None, 0, 0, False)
    is_plain = stat.S_ISREG(status.st_mode)
    return Listed(os.path.join(inside, name), status.st_size, status.st_mtime_ns, status.st_ctime_ns, is_plain)


def require_as_listed(folder: Path, listed: Sequence[Listed], *, but: Path, stage: str) -> None:
    """Raises InputError where names, sizes or times of a folder changed since it was listed."""
    if [file[:3] for file in list_folder(folder, but=but)] != [file[:3] for file in listed]:
        raise InputError(
            f"{folder}: files changed while stage {stage} could read them, so it is not taken for finished; run the "
            "same command again"
        )


def digest_of_sizes(listed: Sequence[Listed]) -> str:
    """Hex SHA-256 over names and sizes: by what 0.1.0 told whether a folder had changed."""
    digest = hashlib.sha256()
    for file in listed:
        digest.update(os.fsencode(file.name) + f"\0{file.size}\n".encode())
    return digest.hexdigest()


def digest_of_contents(listed: Sequence[Listed], known: Mapping[str, Known]) -> str:
    """Hex SHA-256 over names and contents."""
    digest = hashlib.sha256()
    for file in listed:
        content = known[file.name].sha256 if file.is_plain else "no file"
        digest.update(os.fsencode(file.name) + f"\0{content}\n".encode())
    return digest.hexdigest()


def peek(folder: Path, listed: Sequence[Listed], contents: Contents) -> Peek:
    """What a folder's digest is, as far as that is known without reading a file.

    A file that was touched, and has the size that it had, may or may not have the content that it had. A name or a
    size that is new is a change.
    """
    known = contents.get(_key(folder), {})
    plain = {file.name: file for file in listed if file.is_plain}
    unread = [file for file in plain.values() if not _is_known(file, known.get(file.name))]
    if not unread:
        return Peek(digest_of_contents(listed, known), 0)
    if known and (known.keys() != plain.keys() or any(file.size != known[file.name].size for file in unread)):
        return Peek("of other names or sizes", len(unread))
    return Peek(None, len(unread))


def read_contents(listings: Mapping[Path, Sequence[Listed]], store: Path) -> dict[Path, str]:
    """The digest of each folder; files that are not known yet are read, and known from then on.

    Args:
        store: the file that keeps what is known.
    Raises:
        InputError: a file cannot be read, is gone, or changes meanwhile.
    """
    contents = load_contents(store)
    digests, is_new = {}, False
    for folder, listed in listings.items():
        former = contents.get(_key(folder), {})
        names = {file.name for file in listed if file.is_plain}
        known = contents[_key(folder)] = {name: former[name] for name in former if name in names}
        unread = [file for file in listed if file.is_plain and not _is_known(file, known.get(file.name))]
        is_new = is_new or bool(unread) or len(known) < len(former)
        for batch in _read(folder, unread, store):
            known |= batch
        digests[folder] = digest_of_contents(listed, known)
    if is_new:
        with os_errors_named(store), atomic_writer(store) as file:
            for key, of_folder in contents.items():
                items = list(of_folder.items())
                for start in range(0, len(items), BATCH):
                    file.write(_encode(key, dict(items[start : start + BATCH])))
    return digests


def load_contents(store: Path) -> Contents:
    """What is known. Raises InputError where `store` is a link or no plain file."""
    contents: Contents = {}
    with os_errors_named(store), suppress(FileNotFoundError), os.fdopen(open_own(store), "rb") as file:
        for text in file:
            with suppress(ValueError, TypeError, RecursionError):  # pydantic's error is a ValueError
                line = _Line.model_validate(unsealed(json.loads(text), required=True))
                contents.setdefault(line.folder, {}).update(line.files)
    return contents


def _key(folder: Path) -> str:
    return str(folder.absolute())


def _encode(key: str, files: Mapping[str, Known]) -> bytes:
    return json.dumps(sealed({"folder": key, "files": files})).encode() + b"\n"


def _append(store: Path, key: str, batch: Mapping[str, Known]) -> None:
    """A kill leaves what was written before; a line that it cut short ends where the next one begins."""
    with os_errors_named(store):
        descriptor = open_own(store, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with os.fdopen(descriptor, "ab") as file:
            file.write(b"\n" + _encode(key, batch))


def _batches(files: Iterable[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    held = 0
    for file in files:
        batch.append(file)
        held += file.size or 0
        if len(batch) == BATCH or held > BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _is_known(file: Listed, known: Known | None) -> bool:
    return known is not None and known[:3] == (file.size, file.mtime_ns, file.ctime_ns)


def _read(folder: Path, unread: Sequence[Listed], store: Path) -> Iterator[dict[str, Known]]:
    """The contents of files, in batches; each is kept before it is given, and what was read when it ends early too."""
    progress = Progress(f"reading {folder}", len(unread), "files")
    stop, now = threading.Event(), time.time_ns()
    for some in _batches(unread):
        readers = ThreadPoolExecutor(READERS)
        batch: dict[str, Known] = {}
        try:
            for file, digest in zip(some, readers.map(lambda f: _sha256(folder, f, stop), some), strict=True):
                is_settled = abs(now - file.ctime_ns) > GRAIN_NS
                batch[file.name] = Known(file.size or 0, file.mtime_ns, file.ctime_ns if is_settled else 0, digest)
                progress.advance(1)
        finally:
            stop.set()
            readers.shutdown(wait=True, cancel_futures=True)
            if batch:
                _append(store, _key(folder), batch)
        stop.clear()
        yield batch


def _sha256(folder: Path, listed: Listed, stop: threading.Event) -> str:
    path, digest = folder / listed.name, hashlib.sha256()
    with os_errors_named(path), path.open("rb") as file:
        while not stop.is_set() and (data := file.read(CHUNK)):
            digest.update(data)
        status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (listed.size, listed.mtime_ns):
        raise InputError(f"{path}: changed while it was read; run the same command again when nothing writes there")
    return digest.hexdigest()
