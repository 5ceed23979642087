"""Files of NumPy's format whose rows are written in any order."""

from __future__ import annotations

import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.foundation.files import open_own


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape and type of an array; its first axis is the images."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Of all images."""
        return self.shape[0] * self.row_bytes


def npy_header(spec: ArraySpec) -> bytes:
    """What a .npy file begins with."""
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(spec.dtype)), "fortran_order": False, "shape": spec.shape,
    }  # fmt: skip
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def make_room(path: Path, spec: ArraySpec) -> None:
    """A file of the array's whole size, of zeros, so that a full disk is told of at once."""
    header = npy_header(spec)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none, and finds a full disk later
            os.posix_fallocate(descriptor, 0, len(header) + spec.num_bytes)
        os.ftruncate(descriptor, len(header) + spec.num_bytes)
        os.pwrite(descriptor, header, 0)
    finally:
        os.close(descriptor)


def write_at(descriptor: int, content: np.ndarray, offset: int) -> None:
    """All bytes of a contiguous array, at a place in a file."""
    left = content.data.cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def rows_checksum(array: np.ndarray, rows: range) -> int:
    """CRC-32 of the bytes of some rows."""
    return zlib.crc32(np.ascontiguousarray(array[rows.start : rows.stop]).data)


def size_at(path: Path) -> int | None:
    """Of a plain file in bytes; None where there is none."""
    return path.stat().st_size if path.is_file() else None


def npy_size(spec: ArraySpec) -> int:
    """Of the whole file in bytes."""
    return len(npy_header(spec)) + spec.num_bytes
