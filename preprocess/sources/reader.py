"""The bytes of a listed image, wherever they lie. What the workers open, and nothing before they ask."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from pipeline.foundation.folders import folder_at, is_url, local_path
from preprocess.sources.listing import Kind, Part, Source
from preprocess.sources.parquet import RowReader

OPEN_FILES = 32


class Reader:
    """Reads images and the parts beside them. Several threads may read at a time where the root is a URL.

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

    def read(self, source: Source) -> bytes:
        """An image's bytes; none for a row that holds no image.

        Raises:
            OSError: as the file system gives it; EIO where it is an archive that fails, and not one image.
        """
        if self._rows is not None:
            with _archive(source.file):
                return self._rows.read(os.fsdecode(source.file), source.offset)
        if self._kind == "ranges":
            return self._range(source.file, source.offset, source.size)
        if self._base is None:
            return self._folder.read(os.fsdecode(source.name))
        with open(os.path.join(self._base, source.name), "rb", buffering=0) as file:
            return file.read()

    def read_part(self, source: Source, part: Part) -> bytes:
        """The bytes of what lies beside an image. Raises OSError as `read`."""
        return self._range(source.file, part.offset, part.size)

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

    def _range(self, file: bytes, offset: int, size: int) -> bytes:
        with _archive(file):
            if self._base is None:
                data = self._folder.read_range(os.fsdecode(file), offset, size)
            else:
                data = os.pread(self._descriptor(file), size, offset)
        if len(data) != size:
            missing = f"only {len(data)} of {size} bytes are there at byte {offset}"
            raise OSError(errno.EIO, f"{os.fsdecode(file)}: {missing}; the file has changed")
        return data

    def _descriptor(self, file: bytes) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        assert self._base is not None
        return self._open.setdefault(file, os.open(os.path.join(self._base, file), os.O_RDONLY | os.O_CLOEXEC))


@contextmanager
def _archive(file: bytes) -> Iterator[None]:
    """Tells an archive that is gone from an image that is: all that is in it is lost, and not by its own fault."""
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        raise OSError(errno.EIO, f"{os.fsdecode(file)}: {error.strerror or type(error).__name__}") from error
