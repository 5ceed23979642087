"""A folder behind any URL that fsspec knows."""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, wraps
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast

from pipeline.foundation.errors import InputError

# A put there shows nothing before it is whole; a rename would be a copy.
OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "oci", "oss", "obs", "tos"})
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs"}
# What file systems call a file's version, the surest first.
VERSIONS = ("ETag", "etag", "e_tag", "md5Hash", "md5", "content_hash", "blob_id", "sha", "generation", "CRC")
TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "modificationTime", "modify", "created")
P = ParamSpec("P")
R = TypeVar("R")


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


def version_stamp(info: Mapping[str, Any]) -> int:
    """What fsspec says of a file's version as 64 bits; 0 where it says nothing."""
    known = next((info[key] for key in (*VERSIONS, *TIMES) if info.get(key)), None)
    return 0 if known is None else int.from_bytes(hashlib.sha256(str(known).encode()).digest()[:8], "big")


class RemoteFolder:
    """A folder behind a URL. Credentials and endpoints are the environment's, as fsspec's packages read them."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._fs, self._path = _file_system(self._url)

    @property
    def root(self) -> str:
        """The URL."""
        return self._url

    @property
    def place(self) -> tuple[str, str]:
        """The kind of store, empty for this machine's files, and the plain path in it."""
        fs = self._fs
        while (inner := getattr(fs, "fs", None)) is not None:  # of one that caches another's files
            fs = inner
        is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
        return "" if is_local else type(fs).__name__, posixpath.normpath(self._path)

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
    def entries(self) -> list[tuple[str, int | None, int]]:
        """Name, bytes and stamp of each file, in the order of the names' bytes.

        A folder's name ends in a slash, and its bytes are None.
        """
        found: list[tuple[str, int | None, int]] = []
        for info in self._fs.ls(self._path, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["type"] == "directory":
                found.append((f"{name}/", None, 0))
            elif info["name"].rstrip("/") != self._path:
                found.append((name, int(info["size"]), version_stamp(info)))
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
    def stamp(self, name: str) -> int:
        """What the store says of its version."""
        return version_stamp(self._fs.info(self._at(name)))

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
