"""PNGs of ids: a changed bit is refused, or changes no id."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.png import PNG_SIGNATURE, open_whole_png, png_chunk, require_whole_png
from pipeline.artifacts.sample import decode_label_map, encode_label_map
from pipeline.foundation.pictures import voc_palette

SEED, FLIPS = 20261127, 1500
IDS = np.random.default_rng(3).integers(0, 21, (23, 31)).repeat(3, axis=1)


def by_pillow(ids: np.ndarray, *, palette: bool = False) -> bytes:
    picture, buffer = Image.fromarray(ids), io.BytesIO()
    if palette:
        picture.putpalette(voc_palette().tobytes())
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    return np.asarray(open_whole_png(data))


def png_of(idat: bytes, *others: tuple[bytes, bytes], size: tuple[int, int] = (4, 3)) -> bytes:
    """Every checksum of its chunks fits."""
    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), *others, (b"IDAT", idat), (b"IEND", b"")]
    return PNG_SIGNATURE + b"".join(png_chunk(kind, data) for kind, data in chunks)


FILES: dict[str, tuple[bytes, Callable[[bytes], np.ndarray]]] = {
    "own": (encode_label_map(IDS), decode_label_map),
    "own, 16 bit": (encode_label_map(IDS * 40), decode_label_map),
    "of another encoder": (by_pillow(IDS.astype(np.uint8)), decode_label_map),
    "of another encoder, 16 bit": (by_pillow((IDS * 40).astype(np.uint16)), decode_label_map),
    "palette": (by_pillow(IDS.astype(np.uint8), palette=True), decode_mask),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_flipped_bit_is_refused_or_changes_nothing(kind: str) -> None:
    data, decode = FILES[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), expected)
    for bit in np.random.default_rng(SEED).integers(0, 8 * len(data), FLIPS).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"checksum|signature|ends before"):
            decode(bytes(flipped))


@pytest.mark.parametrize("kind", FILES)
def test_a_cut_is_refused_and_what_follows_the_end_is_no_content(kind: str) -> None:
    data, decode = FILES[kind]
    for length in np.random.default_rng(SEED).integers(0, len(data), 200).tolist():
        with pytest.raises(ValueError, match=r"checksum|signature|ends before"):
            decode(data[:length])
    np.testing.assert_array_equal(decode(data + b"more"), decode(data))


ROWS = b"\0\1\2\3\4" * 3


LESS_THAN_IT_SAYS = {
    "fewer rows": (png_of(zlib.compress(ROWS[:10])), "end after 10 of 15"),  # Pillow fills the last row with zeros
    "half a stream": (png_of(zlib.compress(ROWS)[:-8]), "end after 4 of 15"),
    "another Adler-32": (png_of(zlib.compress(ROWS)[:-4] + b"abcd"), "do not unpack"),
    "no stream": (png_of(b""), "end after 0 of 15"),
    "text for a stream": (png_of(b"no zlib stream"), "do not unpack"),
    "another filter": (png_of(zlib.compress(b"\x09" + ROWS[1:])), "does not decode"),
    "no width": (png_of(zlib.compress(b"\2"), size=(0, 1)), "does not decode"),
    "half a chunk": (png_of(zlib.compress(ROWS), (b"pHYs", b"")), "Truncated pHYs"),
    "a second header": (png_of(zlib.compress(ROWS), (b"IHDR", bytes(13))), "not the only one"),
    "no header": (PNG_SIGNATURE + png_chunk(b"IEND", b""), "is no IHDR"),
    "half a header": (PNG_SIGNATURE + png_chunk(b"IHDR", bytes(12)) + png_chunk(b"IEND", b""), "is no IHDR"),
}


@pytest.mark.parametrize("case", LESS_THAN_IT_SAYS)
def test_fitting_checksums_do_not_make_up_for_missing_pixels(case: str) -> None:
    data, reason = LESS_THAN_IT_SAYS[case]
    for decode in (decode_mask, decode_label_map):
        with pytest.raises(ValueError, match=reason):
            decode(data)


def test_the_whole_file_of_another_encoder_is_taken() -> None:
    np.testing.assert_array_equal(decode_label_map(png_of(zlib.compress(ROWS), (b"tEXt", b"a\0b"))), [[1, 2, 3, 4]] * 3)


@pytest.mark.parametrize("width", range(1, 10))
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 11])
def test_interlaced_pixels_are_taken_whole_only(width: int, height: int) -> None:
    ids = np.random.default_rng(width).integers(0, 256, (height, width), dtype=np.uint8)
    passes = [ids[0::8, 0::8], ids[0::8, 4::8], ids[4::8, 0::4], ids[0::4, 2::4], ids[2::4, 0::2], ids[0::2, 1::2]]
    rows = b"".join(b"\0" + row.tobytes() for part in (*passes, ids[1::2]) if part.size for row in part)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    for size, whole in ((len(rows), True), (len(rows) - 1, False)):
        data = PNG_SIGNATURE + header + png_chunk(b"IDAT", zlib.compress(rows[:size])) + png_chunk(b"IEND", b"")
        if whole:
            np.testing.assert_array_equal(decode_label_map(data), ids)
        else:
            with pytest.raises(ValueError, match=f"end after {size} of {len(rows)} bytes"):
                decode_label_map(data)


def test_the_bytes_of_every_kind_of_row() -> None:
    for mode in ("1", "L", "P", "LA", "RGB", "RGBA", "I;16"):
        buffer = io.BytesIO()
        Image.new(mode, (13, 3)).save(buffer, "PNG")
        require_whole_png(buffer.getvalue())
        start = buffer.getvalue().index(b"IDAT") + 4
        (size,) = struct.unpack(">I", buffer.getvalue()[start - 8 : start - 4])
        rows = zlib.decompress(buffer.getvalue()[start : start + size])
        head = buffer.getvalue()[: start - 8]
        for length in (len(rows) - 1, len(rows) // 3):
            chunks = png_chunk(b"IDAT", zlib.compress(rows[:length])) + png_chunk(b"IEND", b"")
            with pytest.raises(ValueError, match=f"end after {length} of {len(rows)} bytes"):
                require_whole_png(head + chunks)
