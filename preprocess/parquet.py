"""Images in Parquet files, as model hubs keep them: listed by the files' metadata, read row by row."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.storage import Folder, LocalFolder
from preprocess.listing import Source

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
LABEL_COLUMN = "label"
ROW_GROUPS = 2  # that a reader keeps
ROWS_AT_ONCE = 65_536


def image_column(folder: Folder, name: str, wanted: str | None) -> str:
    """The column of a file that holds the images: binary, or a struct with binary `bytes` (Hugging Face's Image).

    Raises:
        InputError: there is none such, more than one, or not the one that is `wanted`.
    """
    with _opened(folder, name) as file:
        schema = file.schema_arrow
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
    return likely[0]


def rows_of(folder: Folder, name: str) -> Iterator[Source]:
    """Every row of a file as a source of kind rows, with its class where the file has a column `label`."""
    with _opened(folder, name) as file:
        names = _class_names(file.schema_arrow)
        if LABEL_COLUMN not in file.schema_arrow.names:
            labels: Iterator[Any] = iter([None] * file.metadata.num_rows)
        else:
            batches = file.iter_batches(ROWS_AT_ONCE, columns=[LABEL_COLUMN])
            labels = (label for batch in batches for label in batch.column(0).to_pylist())
        for row, label in enumerate(labels):
            text = f"{name}/{row:08d}".encode()
            yield Source(text, 0, file=name.encode(), offset=row, class_name=_class_of(label, names))


class RowReader:
    """Images by file and row; keeps the columns of the last few row groups."""

    def __init__(self, folder: Folder, column: str) -> None:
        self._folder, self._column = folder, column
        self._files: dict[str, Any] = {}
        self._groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self._lock = Lock()

    def read(self, name: str, row: int) -> bytes:
        """The image's bytes; none where the row holds no image."""
        with self._lock:
            if name not in self._files:
                file = _opened(self._folder, name)
                groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
                self._files[name] = file, np.cumsum([0, *groups])
            starts = self._files[name][1]
            group = int(np.searchsorted(starts, row, side="right")) - 1
            value = self._group(name, group)[row - int(starts[group])].as_py()
        return (value.get("bytes") if isinstance(value, dict) else value) or b""

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files.values():
            file.close(force=True)
        self._files.clear()
        self._groups.clear()

    def _group(self, name: str, group: int) -> Any:
        key = name, group
        if key not in self._groups:
            while len(self._groups) >= ROW_GROUPS:
                self._groups.popitem(last=False)
            self._groups[key] = self._files[name][0].read_row_group(group, columns=[self._column]).column(0)
        self._groups.move_to_end(key)
        return self._groups[key]


def _opened(folder: Folder, name: str) -> Any:
    """A ParquetFile. Raises InputError where pyarrow is missing or the file is none."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError("Parquet needs pyarrow; pip install 'r2o[parquet]'") from None
    try:
        return parquet.ParquetFile(str(folder.path / name) if isinstance(folder, LocalFolder) else folder.open(name))
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{folder.root}/{name}: no whole Parquet file ({error})") from None


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


def _class_names(schema: Any) -> list[str] | None:
    """The names of Hugging Face's ClassLabel feature `label`."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[LABEL_COLUMN]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _class_of(label: object, names: Sequence[str] | None) -> str | None:
    if label is None or (isinstance(label, int) and label < 0):
        return None
    if names is not None and isinstance(label, int) and label < len(names):
        return names[label]
    return str(label)
