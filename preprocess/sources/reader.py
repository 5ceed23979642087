"""The bytes of a listed image, wherever they lie. What the workers open, and nothing before they ask."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_regular, stamp_of
from pipeline.foundation.folders import folder_at, is_url, local_path
from preprocess.sources.listing import Kind, Part, Source, plain_text
from preprocess.sources.parquet import RowReader

OPEN_FILES = 32


class Reader:
    """Reads images and the parts beside them. Several threads may read at a time where the root is a URL.

    What is not what was listed, by size or stamp, raises InputError: a shard holds the images of one moment.

    Args:
        root: path or URL that `Source.name` and `Source.file` are relative to.
        column: of the image, for kind rows.
    """

    def __init__(self, root: str, kind: Kind, column: str | None = None) -> None:
        self._kind = kind
        self._folder = folder_at(root, follow_links=True)
        self._base = None if is_url(root) else os.fsencode(local_path(root))
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._rows = RowReader(self._folder, column or "") if kind == "rows" else None
        self._not_lost: set[bytes] = set()  # folders behind a URL, where each look is a request

    def read(self, source: Source) -> bytes:
        """An image's bytes; none for a row that holds no image.

        Raises:
            InputError: the file has changed since it was listed.
            OSError: as the file system gives it; EIO where it is an archive that fails, and not one image.
        """
        if self._rows is not None:
            name = os.fsdecode(source.file)
            with _archive(source.file):
                data = self._rows.read(name, source.offset)
                self._compare(source, stamp=self._rows.stamp(name))
            return data
        if self._kind == "ranges":
            return self._range(source, source.offset, source.size)
        if self._base is None:
            data = self._folder.read(os.fsdecode(source.name))
            self._compare(source, size=len(data))
            return data
        with open(os.path.join(self._base, source.name), "rb", buffering=0, opener=open_regular) as file:
            self._compare_file(source, file.fileno())
            data = file.read()
            self._compare_file(source, file.fileno())  # it may have been written to meanwhile
        return data

    def read_part(self, source: Source, part: Part) -> bytes:
        """The bytes of what lies beside an image. Raises as `read`."""
        return self._range(source, part.offset, part.size)

    def is_readable(self, source: Source) -> bool:
        """Whether an image, or the archive that holds it, can be opened now."""
        name = source.file or source.name
        try:
            if self._base is None:
                self._folder.size(os.fsdecode(name))
            else:
                os.close(open_regular(os.path.join(self._base, name)))
        except OSError:
            return False
        return True

    def lost_folder(self, source: Source) -> str | None:
        """The folder that an image was lost with: the root, or that which the image lay in; None where both are there.

        An empty folder is where something is no longer mounted.
        """
        name = source.file or source.name
        if self._base is None:
            return self._lost_behind_url(name.rpartition(b"/")[0])
        path, base = os.path.realpath(os.path.join(self._base, name)), os.path.realpath(self._base)
        folder = os.path.dirname(path)
        if not _holds_anything(base):
            return os.fsdecode(self._base)
        if not _holds_anything(folder) or _is_closed(path):
            return os.fsdecode(folder)
        return None

    def close(self) -> None:
        """Close what was opened."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        if self._rows is not None:
            self._rows.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _range(self, source: Source, offset: int, size: int) -> bytes:
        file = source.file
        with _archive(file):
            if self._base is None:
                data = self._folder.read_range(os.fsdecode(file), offset, size)
            else:
                data = self._local_range(source, offset, size)
        if len(data) != size:
            missing = f"only {len(data)} of {size} bytes are there at byte {offset}"
            raise OSError(errno.EIO, f"{os.fsdecode(file)}: {missing}; the file has changed")
        return data

    def _local_range(self, source: Source, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(source.file)
        try:
            data = os.pread(descriptor, size, offset)
            stamp = stamp_of(os.fstat(descriptor))
        except OSError:
            # Opened again when it is tried again: a descriptor of a server that is gone stays of no use.
            os.close(self._open.pop(source.file))
            raise
        self._compare(source, stamp=stamp)
        return data

    def _descriptor(self, file: bytes) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        assert self._base is not None
        return self._open.setdefault(file, open_regular(os.path.join(self._base, file)))

    def _compare_file(self, source: Source, descriptor: int) -> None:
        status = os.fstat(descriptor)
        self._compare(source, size=status.st_size, stamp=stamp_of(status))

    def _compare(self, source: Source, *, size: int | None = None, stamp: int = 0) -> None:
        """Raises InputError where a file is not what was listed, as far as both are known."""
        if source.was_there and size is not None and size != source.size:
            what = f"{source.size} bytes then, {size} now"
        elif source.stamp and stamp and stamp != source.stamp:
            what = "it was written to"
        else:
            return
        where = f"{self._folder.root}/{plain_text(source.file or source.name)}"
        raise InputError(f"{where} changed after it was listed ({what}); run the same command again")

    def _lost_behind_url(self, parent: bytes) -> str | None:
        if parent in self._not_lost:
            return None
        folder = self._folder.below(os.fsdecode(parent)) if parent else self._folder
        try:
            if not folder.exists():
                return folder.root
        except OSError:
            return folder.root
        self._not_lost.add(parent)
        return None


def _holds_anything(folder: bytes) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except PermissionError:
        return True  # there, but not to be looked into
    except OSError:
        return False


def _is_closed(path: bytes) -> bool:
    """Whether a folder on the way may not be entered any more."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM)
    return False


@contextmanager
def _archive(file: bytes) -> Iterator[None]:
    """Tells an archive that is gone from an image that is: all that is in it is lost, and not by its own fault."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise OSError(errno.EIO, f"{os.fsdecode(file)}: {error.strerror or type(error).__name__}") from error
