"""Files that grow by a JSON object a line while a job runs (`append_whole`): which lines of them are whole."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.foundation.files import open_own, read_own, write_atomic
from pipeline.foundation.progress import say

Record = dict[str, Any]
Fits = Callable[[Record], bool]


def read_lines(path: Path, *, fits: Fits) -> list[Record]:
    """The whole lines of a file, none where there is no file. Raises InputError where it is a link or a pipe.

    Args:
        fits: whether an object has the members that lines of this file have.
    """
    return [record for _, record in _lines(path, fits) if record is not None]


def keep_lines(path: Path, *, fits: Fits, wanted: Fits) -> list[Record]:
    """Leave the wanted ones of a file's whole lines in it; gives them. How many were damaged is said.

    Args:
        fits: as in `read_lines`.
    """
    lines = list(_lines(path, fits))
    kept = [(line, record) for line, record in lines if record is not None and wanted(record)]
    if damaged := sum(record is None for _, record in lines):
        say(f"r2o: WARNING: {path}: {damaged} damaged line{'' if damaged == 1 else 's'} dropped")
    content = b"".join(line for line, _ in kept)
    if len(kept) < len(lines) and b"".join(line for line, _ in lines).startswith(content):
        descriptor = open_own(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, len(content))  # which a full disk allows
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    elif len(kept) < len(lines):
        write_atomic(path, content)
    return [record for _, record in kept]


def _lines(path: Path, fits: Fits) -> Iterator[tuple[bytes, Record | None]]:
    """Every line with what it says; None where it was cut short, was changed, or is of another shape."""
    try:
        data = read_own(path)
    except FileNotFoundError:
        return
    for line in io.BytesIO(data):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            record = None
        yield line, record if isinstance(record, dict) and fits(record) else None
