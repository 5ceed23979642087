"""The list of images on disk: flat in memory however long, each record found by its number."""

from __future__ import annotations

import hashlib
import os
import tempfile
import unicodedata
import weakref
from array import array
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import IO, Literal, NamedTuple
from urllib.parse import quote

import numpy as np

from pipeline.artifacts.sample import source_name

Kind = Literal["files", "ranges", "rows"]
BUFFERED = 10_000
NO_CLASS = -1


class Part(NamedTuple):
    """A member of a WebDataset sample beside its image: bytes [offset, offset + size) of the same file."""

    name: str
    offset: int
    size: int


class Source(NamedTuple):
    """A listed image.

    `name` is its path relative to the source root, `size` its bytes (0 where it cannot be known). It is a file of its
    own (kind files), the bytes [offset, offset + size) of `file` (ranges), or row `offset` of it (rows); `file` is
    relative to the root too. `others` are what else belongs to the sample. `stamp` (64 bits without sign) changes when
    the file that holds the image does; 0 where nothing tells that.
    """

    name: bytes
    size: int
    file: bytes = b""
    offset: int = 0
    class_name: str | None = None
    others: tuple[Part, ...] = ()
    stamp: int = 0

    @property
    def was_there(self) -> bool:
        """Whether listing found it, and not its name alone."""
        return bool(self.size or self.stamp)


def stamps_digest(sources: Iterable[Source]) -> str:
    """Hex SHA-256 over names, sizes and stamps: another one where any of the files has changed."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(b"%d\0%d\0%d\0%b" % (len(source.name), source.size, source.stamp, source.name))
    return digest.hexdigest()


def plain_text(name: bytes) -> str:
    """A name as text of one line: as `source_name`, and control characters percent-encoded too. It reverses."""
    return "".join(quote(c) if unicodedata.category(c) == "Cc" else c for c in source_name(name))


class Listing:
    """The images under `root` (path or URL), in an order that their source decides; `ignored` counts other entries.

    Iterate, index by number, take the length. The files on disk go with it (context manager). `all_gone`: the images
    of a list, of which none is there. `archives`: the files that hold them, where they are none of their own.

    Args:
        described: what the source is, for people.
        class_folders: whether the first folder level may name classes.
        column: the one that holds the image, for kind rows.
        walked: the folder of which everything below is looked at, where there is one.
        may_repeat: whether the source can name an image twice, as a list or an archive can and a folder cannot; to find
            that out takes 8 bytes of memory an image.
    """

    def __init__(
        self,
        *,
        root: str,
        kind: Kind,
        described: str,
        class_folders: bool = True,
        column: str | None = None,
        walked: str | None = None,
        may_repeat: bool = False,
    ) -> None:
        self.walked = walked
        self.root, self.kind, self.described, self.class_folders = root, kind, described, class_folders
        self.column, self.ignored, self.all_gone = column, 0, False
        # Stamps lie apart from the records: `sha256`, and with it the fingerprint of a set, knows nothing of time.
        files = tuple(tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115 they live as long as we
        self._records, self._starts, self._stamps = files
        self._files = weakref.finalize(self, _close, *files)
        self._buffer: list[bytes] = []
        self._buffer_starts, self._buffer_stamps = array("Q"), array("Q")
        self._end = self._count = 0
        self._digests = hashlib.sha256(kind.encode()), hashlib.sha256(), hashlib.sha256()
        self._name_hashes = array("q") if may_repeat else None
        self._classes: dict[str, int] = {}
        self._class_names: list[str] = []
        self._folders: set[bytes] = set()
        self._all_in_folders = True
        self._is_open = False
        self.archives: set[bytes] = set()

    def add(self, source: Source) -> None:
        """Append an image. Only before the first look at the list."""
        assert not self._is_open, "a list that was looked at takes no more images"
        class_id = NO_CLASS
        if source.class_name is not None:
            class_id = self._classes.setdefault(source.class_name, len(self._classes))
        if source.file:
            self.archives.add(source.file)
        first, slash, _ = source.name.partition(b"/")
        if slash:
            self._folders.add(first)
        else:
            self._all_in_folders = False
        others = b"".join(b"%b\0%d\0%d\0" % (os.fsencode(part.name), part.offset, part.size) for part in source.others)
        head = b"%d\0%d\0%d\0%b\0" % (source.size, source.offset, class_id, source.file)
        record = head + others + source.name
        assert record.count(0) == 4 + 3 * len(source.others), "a name holds no zero byte"
        if self._name_hashes is not None:
            self._name_hashes.append(hash(source.name))
        self._buffer.append(record)
        self._buffer_starts.append(self._end)
        self._buffer_stamps.append(source.stamp)
        self._end += len(record)
        self._count += 1
        if len(self._buffer) >= BUFFERED:
            self._flush()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Source:
        if not 0 <= number < self._count:
            raise IndexError(number)
        if not self._is_open:
            self._open()
        # Read and not mapped: what is mapped counts as this process's memory.
        starts = array("Q", os.pread(self._starts.fileno(), 16, 8 * number))
        end = starts[1] if len(starts) == 2 else self._end
        (stamp,) = array("Q", os.pread(self._stamps.fileno(), 8, 8 * number))
        return self._decoded(os.pread(self._records.fileno(), end - starts[0], starts[0]), stamp)

    def __iter__(self) -> Iterator[Source]:
        return (self[number] for number in range(self._count))

    @property
    def has_classes(self) -> bool:
        """Whether the first folder level is one of classes: no image lies beside it."""
        return self.class_folders and self._all_in_folders and self._count > 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; empty where there are none."""
        names = [source_name(folder) for folder in self._folders] if self.has_classes else list(self._classes)
        return tuple(sorted(names))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 over every record and where it starts, in order, what was noted, and the names of the classes."""
        self._flush()
        classes = hashlib.sha256("\0".join(self._classes).encode())
        return hashlib.sha256(b"".join(digest.digest() for digest in (*self._digests, classes))).hexdigest()

    def note(self, fact: bytes) -> None:
        """Let `sha256` depend on something more about the source."""
        self._digests[2].update(hashlib.sha256(fact).digest())

    def repeated(self) -> bytes | None:
        """A name that is listed twice, where there is one and it may be."""
        if self._name_hashes is None:
            return None
        hashes = np.sort(np.array(self._name_hashes, np.int64))
        twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
        seen: set[bytes] = set()
        for name in (source.name for source in self if hash(source.name) in twice) if twice else ():
            if name in seen:
                return name
            seen.add(name)
        return None

    def close(self) -> None:
        """Remove the files on disk."""
        self._files()

    def __enter__(self) -> Listing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decoded(self, record: bytes, stamp: int) -> Source:
        size, offset, class_id, file, *others, name = record.split(b"\0")
        return Source(
            name=name,
            size=int(size),
            file=file,
            offset=int(offset),
            class_name=self._class_of(name, int(class_id)),
            others=tuple(map(_part, others[::3], others[1::3], others[2::3])),
            stamp=stamp,
        )

    def _class_of(self, name: bytes, class_id: int) -> str | None:
        if self.has_classes:
            return source_name(name.partition(b"/")[0])
        return self._class_names[class_id] if class_id != NO_CLASS else None

    def _flush(self) -> None:
        if not self._buffer:
            return
        data = b"".join(self._buffer)
        self._digests[0].update(self._buffer_starts.tobytes())
        self._digests[1].update(data)
        self._records.write(data)
        self._starts.write(self._buffer_starts.tobytes())
        self._stamps.write(self._buffer_stamps.tobytes())
        self._buffer.clear()
        del self._buffer_starts[:], self._buffer_stamps[:]

    def _open(self) -> None:
        """Have everything in the files, and take no more."""
        self._flush()
        for file in (self._records, self._starts, self._stamps):
            file.flush()
        self._class_names = list(self._classes)
        self._is_open = True


def _close(*files: IO[bytes]) -> None:
    for file in files:
        file.close()


def _part(name: bytes, offset: bytes, size: bytes) -> Part:
    return Part(os.fsdecode(name), int(offset), int(size))
