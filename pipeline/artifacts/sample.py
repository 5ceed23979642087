"""One sample of a shard: its members, their bytes, and the geometry that image and label map share.

Geometry: a position is (x, y) in [0, 1]², from the left upper corner to the right lower corner of the decoded,
upright image. The label map, any crop box and any feature map cover that same square, whatever their sizes.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import simplejpeg

from pipeline.artifacts.png import PNG_SIGNATURE, open_whole_png, png_chunk

IMAGE_MEMBER = "jpg"
META_MEMBER = "json"
MAX_8BIT_LABELS = 256
PNG_GREY, PNG_UP = 0, 2
PNG_START = PNG_SIGNATURE + b"\0\0\0\x0dIHDR"
IDAT_AT = 33  # after signature and header


@dataclass(frozen=True, kw_only=True)
class SampleMeta:
    """The json member. `source` is relative to the source root; `changed` says what storing altered.

    `source_bytes` and hex `source_sha256` are of the bytes that were read of it; format 1 has neither.
    """

    source: str
    width: int
    height: int
    num_superpixels: int
    class_name: str | None = None
    changed: tuple[str, ...] = ()
    source_bytes: int | None = None
    source_sha256: str | None = None

    def encode(self) -> bytes:
        """UTF-8 JSON with sorted keys, without what is empty."""
        members = {name: value for name, value in vars(self).items() if value not in (None, ())}
        return json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, data: bytes) -> SampleMeta:
        """The reverse of `encode`. Raises ValueError where the bytes are not such a member."""
        try:
            members = json.loads(data)
        except RecursionError:
            raise ValueError("json member of a sample: nested without end") from None
        known = {field.name for field in fields(cls)}
        if not isinstance(members, dict) or not known.issuperset(members):
            raise ValueError(f"not the json member of a sample: {data[:80]!r}")
        wrong = [name for name, value in members.items() if not _META_VALUES[name](value)]
        if wrong:
            raise ValueError(f"json member of a sample: {wrong[0]} cannot be {members[wrong[0]]!r:.80}")
        try:
            return cls(**{**members, "changed": tuple(members.get("changed", ()))})
        except TypeError as error:
            raise ValueError(f"json member of a sample: {error}") from None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_META_VALUES: dict[str, Callable[[object], bool]] = {
    "source": _is_text,
    "width": _is_count,
    "height": _is_count,
    "num_superpixels": _is_count,
    "class_name": _is_text,
    "changed": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "source_bytes": _is_count,
    "source_sha256": lambda value: isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None,
}


def decode_jpeg(data: bytes) -> np.ndarray:
    """A JPEG as RGB, uint8 (H, W, 3), decoded strictly by libjpeg-turbo.

    Raises:
        ValueError: the bytes are not a JPEG, or one that a decoder could only guess at (cut short, corrupt).
    """
    pixels: np.ndarray = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    return pixels


def encode_label_map(label_map: np.ndarray) -> bytes:
    """An integer map (H, W) as lossless grey PNG: 8 bit when every id is below 256, otherwise 16 bit.

    Raises:
        ValueError: not two-dimensional, not integer, or ids outside 0 … 65535.
    """
    if label_map.ndim != 2 or label_map.dtype.kind not in "iu" or label_map.size == 0:
        raise ValueError(f"a label map is a non-empty integer array (H, W), not {label_map.dtype} {label_map.shape}")
    low, high = int(label_map.min()), int(label_map.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise ValueError(f"label map ids must lie in 0 … 65535, not {low} … {high}")
    height, width = label_map.shape
    depth = 8 if high < MAX_8BIT_LABELS else 16
    rows = np.ascontiguousarray(label_map, dtype=f">u{depth // 8}").view(np.uint8)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = PNG_UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    # Run lengths after the filter "up": a third of the time of Pillow's encoder, and fewer bytes (docs/benchmarks.md).
    compressor = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, depth, PNG_GREY, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"IDAT", compressor.compress(filtered.tobytes()) + compressor.flush()),
        (b"IEND", b""),
    )
    return PNG_SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks)


def decode_label_map(data: bytes) -> np.ndarray:
    """A label map as uint8 or uint16 (H, W). Raises ValueError for anything but a whole grey PNG."""
    own = _decode_own(data)
    if own is not None:
        return own
    try:
        image = open_whole_png(data)
    except ValueError as error:
        raise ValueError(f"label map is not a whole PNG: {error}") from None
    if image.mode not in ("L", "I;16"):
        raise ValueError(f"a label map is a grey PNG, not one of mode {image.mode}")
    return np.asarray(image)


def _decode_own(data: bytes) -> np.ndarray | None:
    """What `encode_label_map` wrote, in half of Pillow's time; None for any other PNG, and for a damaged one."""
    if len(data) < IDAT_AT + 12 or data[:16] != PNG_START or data[IDAT_AT + 4 : IDAT_AT + 8] != b"IDAT":
        return None
    width, height, depth, *kind = struct.unpack(">IIBBBBB", data[16:29])
    (size,) = struct.unpack(">I", data[IDAT_AT : IDAT_AT + 4])
    packed = data[IDAT_AT + 8 : IDAT_AT + 8 + size]
    chunks = png_chunk(b"IHDR", data[16:29]) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b"")
    if depth not in (8, 16) or kind != [PNG_GREY, 0, 0, 0] or data != PNG_SIGNATURE + chunks:
        return None
    if not width or not height:
        return None
    stride = 1 + width * depth // 8
    unpacked = zlib.decompressobj()
    try:
        rows = np.frombuffer(unpacked.decompress(packed, height * stride + 1), np.uint8)
    except zlib.error:
        return None
    if rows.size != height * stride or not unpacked.eof or (rows[::stride] != PNG_UP).any():
        return None
    values = np.add.accumulate(rows.reshape(height, stride)[:, 1:], axis=0, dtype=np.uint8)
    return values if depth == 8 else values.view(">u2").astype(np.uint16)


def source_name(relative_path: bytes) -> str:
    """A relative path as text: UTF-8 as it is, every other byte (and `%`) percent-encoded, so that it reverses."""
    try:
        return relative_path.decode().replace("%", "%25")
    except UnicodeDecodeError:
        text = relative_path.replace(b"%", b"%25").decode(errors="surrogateescape")
        return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
