"""Folders on a disk or behind any URL that fsspec knows, with files that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pipeline.foundation.files import atomic_writer, open_own, open_regular, refuse_link, stamp_of
from pipeline.foundation.remote_folder import RemoteFolder


class Folder(Protocol):
    """Files by name under one root; a name may hold slashes. What is missing raises FileNotFoundError."""

    @property
    def root(self) -> str:
        """The path or URL, for people and for `folder_at`."""
        ...

    def exists(self) -> bool:
        """Whether there is such a folder; behind a URL, whether anything lies in it."""
        ...

    def names(self) -> list[str]:
        """What lies directly in the folder, sorted; nothing where there is none. NotADirectoryError for a file."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that lies directly in the folder."""
        ...

    def make(self) -> None:
        """Make the folder and those above it, where there are folders at all."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def stamp(self, name: str) -> int:
        """What changes when a file does, as 64 bits; 0 where the store tells nothing."""
        ...

    def below(self, name: str) -> Folder:
        """A folder inside this one."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A file to read and to seek in."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on, fewer at the end of the file."""
        ...

    def writer(self, name: str) -> Any:
        """Context manager: a file to write, which takes its name when all is written, and none after an error."""
        ...

    def write(self, name: str, data: bytes | str) -> None:
        """Write a whole file, text as UTF-8."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where it is not there."""
        ...


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether it names something behind a protocol other than this machine's files."""
    text = os.fspath(place)
    return "://" in text and not text.startswith("file://")


def local_path(place: str | os.PathLike[str]) -> Path:
    """A path of this machine, of which `file://` may be the beginning; absolute."""
    return Path(os.fspath(place).removeprefix("file://")).absolute()


def place_of(place: str) -> tuple[str, str]:
    """The store that a path or URL leads to, and where in it; none (empty) and the real path for this machine's files.

    Two of one folder are equal, whatever the protocol is called and however the path is written.
    """
    store, path = RemoteFolder(place).place if is_url(place) else ("", str(local_path(place)))
    return store, path if store else os.path.realpath(path)


def folder_at(place: str | os.PathLike[str] | Folder, *, follow_links: bool = False) -> Folder:
    """The folder of a path or URL; a folder is itself.

    Args:
        follow_links: links below a local folder are what they lead to, as users have them in folders of images; in
            folders that r2o keeps they are refused.
    Raises:
        InputError: the URL's protocol is unknown, or its package is not installed.
    """
    if not isinstance(place, str | os.PathLike):
        return place
    if is_url(place):
        return RemoteFolder(os.fspath(place))
    return LocalFolder(local_path(place), follow_links=follow_links)


class LocalFolder:
    """A folder of this machine. Unless it follows links, whatever would go through one below it raises InputError."""

    def __init__(self, path: Path, *, follow_links: bool = False) -> None:
        self.path, self.follow_links = path, follow_links

    @property
    def root(self) -> str:
        """The absolute path."""
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is such a folder."""
        return self.path.is_dir()

    def names(self) -> list[str]:
        """What lies in it."""
        return sorted(os.listdir(self.path)) if self.path.exists() else []

    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it."""
        if not self.path.is_dir():
            return {}
        follow = self.follow_links
        with os.scandir(self.path) as entries:
            files = [entry for entry in entries if entry.is_file(follow_symlinks=follow)]
            return {entry.name: entry.stat(follow_symlinks=follow).st_size for entry in files}

    def below(self, name: str) -> LocalFolder:
        """A folder inside it."""
        return LocalFolder(self._at(name), follow_links=self.follow_links)

    def make(self) -> None:
        """Make it."""
        self.path.mkdir(parents=True, exist_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._at(name).stat().st_size

    def stamp(self, name: str) -> int:
        """Its time of change."""
        return stamp_of(self._at(name).stat())

    def open(self, name: str) -> BinaryIO:
        """A file to read."""
        path = self.path / name
        return os.fdopen(open_regular(path) if self.follow_links else open_own(path), "rb")

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        with self.open(name) as file:
            return file.read()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a file."""
        with self.open(name) as file:
            return os.pread(file.fileno(), size, offset)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A temporary file beside `name`, renamed to it."""
        with atomic_writer(self.path / name) as file:
            yield file

    def write(self, name: str, data: bytes | str) -> None:
        """Write a whole file."""
        with self.writer(name) as file:
            file.write(data.encode() if isinstance(data, str) else data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        path = self.path / name
        if path.is_dir() and not path.is_symlink():
            inside = LocalFolder(path)
            for below in inside.names():
                inside.remove(below)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)

    def _at(self, name: str) -> Path:
        path = self.path / name
        if not self.follow_links:
            refuse_link(path)
        return path
