"""Images in Parquet files, as model hubs keep them: listed by the files' metadata, read row by row."""

from __future__ import annotations

import errno
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_regular
from pipeline.foundation.folders import Folder, LocalFolder
from pipeline.foundation.remote_folder import version_stamp
from preprocess.sources.listing import Source

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LABEL_COLUMN = "label"
OPEN_FILES, ROW_GROUPS = 32, 2  # that a reader keeps
ROWS_AT_ONCE = 65_536


class _File(NamedTuple):
    """An open Parquet file, of pyarrow; `close` closes what it reads from too. `starts` (groups + 1,) counts rows.

    `stamp` is of the file that was opened; 0 where that is not known without another request.
    """

    table: Any
    starts: np.ndarray
    stamp: int

    def close(self) -> None:
        self.table.close(force=True)


def image_column(folder: Folder, name: str, wanted: str | None) -> str:
    """The column of a file that holds the images: binary, or a struct with binary `bytes` (Hugging Face's Image).

    Raises:
        InputError: there is none such, more than one, or not the one that is `wanted`; pyarrow is not installed.
    """
    with closing(_opened(folder, name)) as file:
        schema = file.table.schema_arrow
    found = [field.name for field in schema if _holds_images(field.type)]
    where = f"{folder.root}/{name}"
    if wanted is not None:
        if wanted not in found:
            raise InputError(f"{where}: no image column {wanted!r}; {_those(found, schema.names)}")
        return wanted
    likely = [column for column in found if column.lower() in IMAGE_COLUMNS] or found
    if len(likely) != 1:
        raise InputError(
            f"{where}: which column holds the image? {_those(found, schema.names)}; set shards.source.image"
        )
    return str(likely[0])


def rows_of(folder: Folder, name: str) -> Iterator[Source]:
    """Every row of a file as a source of kind rows, with its class where a column `label` holds integers or names."""
    file_name, stamp = os.fsencode(name), folder.stamp(name)
    with closing(_opened(folder, name)) as file:
        classes = _classes(file.table) or iter([None] * int(file.starts[-1]))
        for row, class_name in enumerate(classes):
            path = b"%b/%08d" % (file_name, row)
            yield Source(path, 0, file=file_name, offset=row, class_name=class_name, stamp=stamp)


class RowReader:
    """Images by file and row; keeps the image columns of the last few row groups. For several threads."""

    def __init__(self, folder: Folder, column: str) -> None:
        self._folder, self._column = folder, column
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str, row: int) -> bytes:
        """The image's bytes; none where the row holds no image. Raises OSError where the file cannot be read."""
        with self._lock:
            try:
                value = self._value(name, row)
            except _arrow_error() as error:
                raise OSError(errno.EIO, f"damaged Parquet file ({_line(error)})", name) from None
            except OSError:
                # Opened again when it is tried again: a descriptor of a server that is gone stays of no use.
                if name in self._files:
                    self._files.pop(name).close()
                raise
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def stamp(self, name: str) -> int:
        """The stamp of a file that was read; behind a URL, of when it was opened."""
        if isinstance(self._folder, LocalFolder):
            return self._folder.stamp(name)
        with self._lock:
            return self._files[name].stamp if name in self._files else 0

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._groups.clear()

    def _value(self, name: str, row: int) -> Any:
        file = _kept(self._files, name, OPEN_FILES, lambda: _opened(self._folder, name))
        group = int(np.searchsorted(file.starts, row, side="right")) - 1
        columns = _kept(self._groups, (name, group), ROW_GROUPS, lambda: self._group(file, group))
        return columns[row - int(file.starts[group])].as_py()

    def _group(self, file: _File, group: int) -> Any:
        return file.table.read_row_group(group, columns=[self._column], use_threads=False).column(0)


def _kept(cache: OrderedDict[Any, Any], key: object, most: int, make: Callable[[], Any]) -> Any:
    """What the cache holds for a key, made where it holds none; what was used longest ago makes room before that."""
    if key not in cache:
        while len(cache) >= most:
            if isinstance(old := cache.popitem(last=False)[1], _File):
                old.close()
        cache[key] = make()
    cache.move_to_end(key)
    return cache[key]


def _opened(folder: Folder, name: str) -> _File:
    """Raises InputError where pyarrow is missing or the file is no Parquet."""
    try:
        from pyarrow import OSFile, parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow; pip install -e '.[parquet]'") from None
    if isinstance(folder, LocalFolder):
        path = os.path.join(os.fsencode(folder.root), os.fsencode(name))
        os.close(open_regular(path))  # pyarrow would wait for a pipe
        file, stamp = OSFile(path), 0
    else:
        file = folder.open(name)
        stamp = version_stamp(getattr(file, "details", None) or {})
    try:
        table = parquet.ParquetFile(file)
    except _arrow_error() as error:
        file.close()
        raise InputError(f"{folder.root}/{name}: no whole Parquet file ({_line(error)}); fetch it again") from None
    groups = [table.metadata.row_group(number).num_rows for number in range(table.metadata.num_row_groups)]
    return _File(table, np.cumsum([0, *groups]), stamp)


def _arrow_error() -> tuple[type[Exception], ...]:
    import pyarrow

    return (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, pyarrow.ArrowSerializationError)


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _those(found: Sequence[str], all_columns: Sequence[str]) -> str:
    return f"those that may: {', '.join(found)}" if found else f"none of {', '.join(all_columns)} may"


def _classes(table: Any) -> Iterator[str | None] | None:
    """The class of each row; None where no column tells it."""
    schema = table.schema_arrow
    if LABEL_COLUMN not in schema.names or not _holds_labels(schema.field(LABEL_COLUMN).type):
        return None
    names = _class_names(schema)
    batches = table.iter_batches(ROWS_AT_ONCE, columns=[LABEL_COLUMN], use_threads=False)
    return (_class_of(label, names) for batch in batches for label in batch.column(0).to_pylist())


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _class_names(schema: Any) -> list[str]:
    """The names of Hugging Face's ClassLabel feature `label`; none where it is not described."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[LABEL_COLUMN]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _class_of(label: int | str | None, names: Sequence[str]) -> str | None:
    if isinstance(label, int):
        return None if label < 0 else names[label] if label < len(names) else str(label)
    return label or None
