"""PNGs of ids: what a strict decoder takes. Pillow alone passes over failed checksums, and over rows at the end."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAME = 12  # bytes of a chunk beside its data: length, kind, checksum
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE = 2**20
_PILLOW_RAISES = (
    OSError, SyntaxError, ValueError, LookupError, EOFError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk, with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def require_whole_png(data: bytes) -> None:
    """That every chunk's checksum fits, from IHDR to IEND, and that no row is missing. What follows is no part of it.

    Raises:
        ValueError: it is not so.
    """
    chunks = list(_chunks(data))
    if [kind for kind, _ in chunks].count(b"IHDR") != 1 or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise ValueError("its first chunk is no IHDR chunk, or not the only one")
    needed = _bytes_of_rows(chunks[0][1])
    found = _unpacked_size(b"".join(part for kind, part in chunks if kind == b"IDAT"), needed)
    if found < needed:
        raise ValueError(f"its pixels end after {found} of {needed} bytes")


def open_whole_png(data: bytes) -> Image.Image:
    """A PNG with all of its pixels decoded. Raises ValueError for anything else."""
    require_whole_png(data)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
        return image
    except _PILLOW_RAISES as error:
        raise ValueError(f"it does not decode ({error})") from None


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and data of every chunk. Raises ValueError where one is damaged or none is the last."""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError("no PNG signature")
    view, at, kind = memoryview(data), len(PNG_SIGNATURE), b""
    while kind != b"IEND":
        if len(data) - at < _FRAME:
            raise ValueError("it ends before its IEND chunk")
        (size,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + _FRAME + size
        if end > len(data) or zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise ValueError(f"the checksum of the chunk at byte {at} does not fit")
        yield kind, view[at + 8 : end - 4]
        at = end


def _bytes_of_rows(header: memoryview) -> int:
    """How many bytes all rows of an image are, each with the byte of its filter."""
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits, total = depth * _CHANNELS.get(colour, 0), 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _unpacked_size(packed: bytes, most: int) -> int:
    """How many bytes a stream unpacks to; those beyond `most` may be left out."""
    stream, size = zlib.decompressobj(), 0
    try:
        while size < most and (piece := stream.decompress(packed, _PIECE)):
            size, packed = size + len(piece), stream.unconsumed_tail
    except zlib.error as error:
        raise ValueError(f"its pixels do not unpack ({error})") from None
    return size
