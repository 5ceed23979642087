"""Folders on a disk or behind any URL that fsspec knows, with files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, Protocol, TypeVar, cast

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import atomic_writer

# A put there shows nothing before it is whole; a rename would be a copy.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "oci", "oss", "obs", "tos"})
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs"}
P = ParamSpec("P")
R = TypeVar("R")


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


def folder_at(place: str | os.PathLike[str] | Folder) -> Folder:
    """The folder of a path or URL; a folder is itself.

    Raises:
        InputError: the URL's protocol is unknown, or its package is not installed.
    """
    if not isinstance(place, str | os.PathLike):
        return place
    return RemoteFolder(os.fspath(place)) if is_url(place) else LocalFolder(local_path(place))


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

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
        with os.scandir(self.path) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def below(self, name: str) -> LocalFolder:
        """A folder inside it."""
        return LocalFolder(self.path / name)

    def make(self) -> None:
        """Make it."""
        self.path.mkdir(parents=True, exist_ok=True)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        """A file to read."""
        return (self.path / name).open("rb")

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return (self.path / name).read_bytes()

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


def _os_errors(method: Callable[P, R]) -> Callable[P, R]:
    """What a store's package raises of its own (no credentials, a refused connection) becomes an OSError."""

    @wraps(method)
    def wrapped(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return method(*arguments, **named)
        except (OSError, InputError, MemoryError):
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    return wrapped


class RemoteFolder:
    """A folder behind a URL. Credentials and endpoints are the environment's, as fsspec's packages read them."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._fs, self._path = _file_system(self._url)

    @property
    def root(self) -> str:
        """The URL."""
        return self._url

    def exists(self) -> bool:
        """Whether anything lies in it."""
        return bool(self.names())

    @_os_errors
    def names(self) -> list[str]:
        """What lies in it."""
        try:
            found = self._fs.ls(self._path, detail=False)
        except FileNotFoundError:
            return []
        names = {path.rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != self._path}
        return sorted(names - {""})

    @_os_errors
    def sizes(self) -> dict[str, int]:
        """Bytes of each file in it."""
        try:
            found = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return {}
        return {info["name"].rpartition("/")[2]: int(info["size"]) for info in found if info["type"] == "file"}

    @_os_errors
    def entries(self) -> list[tuple[str, int | None]]:
        """Name and bytes of each file, name with a slash and None of each folder, in the order of the names' bytes."""
        found: list[tuple[str, int | None]] = []
        for info in self._fs.ls(self._path, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["type"] == "directory":
                found.append((f"{name}/", None))
            elif info["name"].rstrip("/") != self._path:
                found.append((name, int(info["size"])))
        return sorted(found, key=lambda entry: entry[0].encode())

    def below(self, name: str) -> RemoteFolder:
        """A folder inside it."""
        return RemoteFolder(f"{self._url}/{name}")

    @_os_errors
    def make(self) -> None:
        """Make it, where the store has folders."""
        if not self._is_object_store:
            self._fs.makedirs(self._path, exist_ok=True)

    @_os_errors
    def size(self, name: str) -> int:
        """Bytes of a file."""
        return int(self._fs.info(self._at(name))["size"])

    @_os_errors
    def open(self, name: str) -> BinaryIO:
        """A file to read, block by block."""
        return cast(BinaryIO, self._fs.open(self._at(name), "rb"))

    @_os_errors
    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        return cast(bytes, self._fs.cat_file(self._at(name)))

    @_os_errors
    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a file, in one request."""
        return cast(bytes, self._fs.cat_file(self._at(name), start=offset, end=offset + size)) if size else b""

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A local temporary file, put to `name` at the end: at once, or under a temporary name and renamed."""
        with tempfile.NamedTemporaryFile(prefix="r2o-") as file:
            yield cast(BinaryIO, file)
            file.flush()
            self._put(file.name, name)

    @_os_errors
    def write(self, name: str, data: bytes | str) -> None:
        """Write a whole file."""
        data = data.encode() if isinstance(data, str) else data
        if self._is_object_store:
            self._fs.pipe_file(self._at(name), data)
            return
        with self.writer(name) as file:
            file.write(data)

    @_os_errors
    def remove(self, name: str) -> None:
        """Remove a file or what lies under a folder."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._at(name), recursive=True)

    @_os_errors
    def _put(self, local: str, name: str) -> None:
        if self._is_object_store:
            self._fs.put_file(local, self._at(name))
            return
        folder, _, last = self._at(name).rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{last}.{os.urandom(4).hex()}.tmp"
        try:
            self._fs.put_file(local, temporary)
            self._fs.mv(temporary, self._at(name))
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)
            raise

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"

    @property
    def _is_object_store(self) -> bool:
        return self._url.partition("://")[0].rpartition("::")[2] in OBJECT_STORES


@cache
def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system and path of a URL; it remembers no listing, others may write beside us."""
    import fsspec

    protocol = url.partition("://")[0].partition("::")[0]
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError:
        package = PACKAGES.get(protocol, f"fsspec's package for {protocol}")
        raise InputError(f"{url}: {protocol}:// needs {package}; install it into the same environment") from None
    except ValueError as error:
        raise InputError(f"{url}: {error}; give a path or a URL that fsspec knows") from None
    return fs, str(path).rstrip("/")
