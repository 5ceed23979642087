from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from preprocess.shards.images import StoredImage, Unreadable, exif_orientation, read_image

MAX_PIXELS = 89_478_485


def read(data: bytes, *, quality: int, min_side: int | None = None) -> StoredImage:
    return read_image(data, quality=quality, max_pixels=MAX_PIXELS, min_side=min_side)


def exif_block(orientation: int, *, order: str = "<") -> bytes:
    """EXIF with one tag, made by hand: header, one entry of type SHORT, no next directory."""
    mark = b"II" if order == "<" else b"MM"
    return mark + struct.pack(f"{order}HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG written by hand (Pillow cannot write colour): uint16 (H, W) grey or (H, W, 3)."""
    rows = b"".join(b"\0" + row.tobytes() for row in samples.astype(">u2"))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, 2 if samples.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def close(pixels: np.ndarray, expected: np.ndarray, mean: float = 2.0) -> None:
    """Equal up to one JPEG encoding of high quality."""
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < mean


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpeg_keeps_its_bytes(picture, encoded, mode, options):
    data = encoded(picture(0), mode=mode, **options)
    stored = read(data, quality=95)
    assert stored.jpeg == data
    assert stored.changed == ()
    pillow = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(stored.pixels[..., :3] - pillow).max() <= 3  # two builds of libjpeg-turbo


def test_what_is_stored_decodes_to_the_pixels(picture, encoded):
    stored = read(encoded(picture(0), "PNG"), quality=80)
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(stored.jpeg, "RGB"), stored.pixels[..., :3])
    assert len(stored.jpeg) < len(read(encoded(picture(0), "PNG"), quality=99).jpeg)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", "<>")
def test_jpeg_is_stored_upright(picture, encoded, orientation, order):
    plain = encoded(picture(0), quality=98, subsampling=0)
    data = with_segment(plain, 0xE1, b"Exif\0\0" + exif_block(orientation, order=order))
    stored = read(data, quality=98)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    close(stored.pixels[..., :3], upright)
    assert stored.changed == ((f"orientation {orientation}",) if orientation > 1 else ())
    assert (stored.jpeg == data) == (orientation == 1)
    assert Image.open(io.BytesIO(stored.jpeg)).getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("tiff", [b"", b"II", b"junk" * 9, exif_block(0), exif_block(9), exif_block(6)[:12]])
def test_no_sense_in_exif_means_upright(tiff):
    assert exif_orientation(tiff) == 1


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_other_formats_are_stored_upright(picture, encoded, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = read(encoded(picture(0), kind, exif=exif, **options), quality=98)
    close(stored.pixels[..., :3], np.rot90(picture(0), -1))  # 6: a quarter turn clockwise makes it upright
    assert stored.changed == (f"format {kind}", "orientation 6")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_content_decides_the_format(picture, encoded, kind):
    data = encoded(picture(0), kind, **({"lossless": True} if kind == "WEBP" else {}))
    stored = read(data, quality=98)
    assert stored.changed[0] == f"format {kind}"
    close(stored.pixels[..., :3], np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_palette_and_alpha_are_what_pillow_converts(picture, encoded):
    for mode in ("P", "RGBA", "LA", "L", "1"):
        data = encoded(picture(0), "PNG", mode=mode)
        stored = read(data, quality=98)
        close(stored.pixels[..., :3], np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), mean=4)
        assert stored.changed == ("format PNG", f"mode {mode}")


def test_palette_with_transparency(picture, encoded):
    data = encoded(picture(0), "PNG", mode="P", transparency=bytes(range(256)))
    assert read(data, quality=95).changed == ("format PNG", "mode P")


def test_16_bit_grey_is_scaled():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    expected = np.repeat((ramp / 257.0).round()[..., None], 3, axis=2)
    close(read(png16(ramp), quality=98).pixels[..., :3], expected, mean=1)
    tiff = io.BytesIO()
    Image.fromarray(ramp).save(tiff, "TIFF")
    close(read(tiff.getvalue(), quality=98).pixels[..., :3], expected, mean=1)


def test_16_bit_colour_is_scaled(picture):
    wide = picture(0).astype(np.uint16) * 257
    close(read(png16(wide), quality=98).pixels[..., :3], picture(0))


def test_float_pixels_have_no_range(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture(0)[..., 0].astype(np.float32)).save(buffer, "TIFF")
    with pytest.raises(Unreadable, match="32-bit"):
        read(buffer.getvalue(), quality=95)


def test_cmyk_is_inverted_where_adobe_says_so(picture, encoded):
    data = encoded(picture(0), mode="CMYK", quality=98)
    assert b"Adobe" in data
    stored = read(data, quality=98)
    close(stored.pixels[..., :3], np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert stored.changed == ("colour CMYK",)
    start = data.index(b"\xff\xee")
    without_marker = data[:start] + data[start + 16 :]
    raw = simplejpeg.decode_jpeg(data, "CMYK")
    inks = Image.frombytes("CMYK", raw.shape[1::-1], raw.tobytes())
    close(read(without_marker, quality=98).pixels[..., :3], np.asarray(inks.convert("RGB")))


def test_first_frame_of_an_animation(picture):
    frames = [Image.fromarray(picture(n)) for n in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        options = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
        stored = read(buffer.getvalue(), quality=98)
        assert stored.changed[:2] == (f"format {kind}", "first frame")
        close(stored.pixels[..., :3], picture(0), mean=12 if kind == "GIF" else 2)


def test_one_pixel(encoded):
    stored = read(encoded(np.full((1, 1, 3), 77, np.uint8), "PNG"), quality=95)
    np.testing.assert_allclose(stored.pixels[..., :3], 77, atol=2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {}), ("GIF", {})],
)
@pytest.mark.parametrize("min_side", [None, 24])
def test_every_truncation_is_unreadable(picture, encoded, kind, options, min_side):
    data = encoded(picture(0), kind, **options)
    for length in [1, 2, 3, 10, *range(20, len(data) - 8, max(1, len(data) // 60))]:
        with pytest.raises(Unreadable):
            read(data[:length], quality=95, min_side=min_side)


def test_corrupt_middle_is_unreadable(picture, encoded):
    jpeg = encoded(picture(0), restart_marker_blocks=1)
    png = encoded(picture(0), "PNG")
    for data in (jpeg, png):
        middle = len(data) // 2
        broken = data[:middle] + bytes(60) + data[middle + 60 :]
        with pytest.raises(Unreadable):
            read(broken, quality=95)
        with pytest.raises(Unreadable):
            read(broken, quality=95, min_side=24)


def test_a_wrong_checksum_in_a_png_is_unreadable(picture, encoded):
    data = encoded(picture(0), "PNG")
    place = data.index(b"IEND") - 5  # last byte of the checksum of the last IDAT
    with pytest.raises(Unreadable, match="broken PNG"):
        read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], quality=95)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"just text\n", "not an image"),
        (b"\xff\xd8 text", "JPEG: "),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded|not an image"),
        (b"GIF89a", "cannot be decoded|not an image"),
        (b"%PDF-1.4", "not an image"),
    ],
)
def test_no_image(data, reason):
    with pytest.raises(Unreadable, match=reason):
        read(data, quality=95)


def test_decompression_bomb_is_unreadable():
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    with pytest.raises(Unreadable, match=r"30000×30000|900000000"):
        read(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""), quality=95)


def test_junk_after_the_end_is_kept(picture, encoded):
    data = encoded(picture(0)) + b"a phone's own data"
    assert read(data, quality=95).jpeg == data


@pytest.mark.parametrize(
    ("size", "min_side", "reduced"),
    [
        ((500, 375), 224, (313, 235)),
        ((96, 72), 96, (96, 72)),
        ((1000, 1000), 224, (250, 250)),
        ((5000, 1), 224, (625, 1)),
        ((225, 1800), 224, (225, 1800)),
    ],
)
def test_pixels_are_reduced_to_no_less_than_asked(picture, encoded, size, min_side, reduced):
    data = encoded(picture(0, *size))
    stored = read(data, quality=95, min_side=min_side)
    assert (stored.width, stored.height) == size
    assert stored.pixels.shape == (reduced[1], reduced[0], 4)
    eighths = {500: 5, 96: 8, 1000: 2, 225: 8, 5000: 1}[size[0]]
    assert stored.extent == (size[0] * eighths / 8, size[1] * eighths / 8)
    whole = Image.fromarray(read(data, quality=95).pixels[..., :3])
    box = (0, 0, *stored.extent)
    ours = Image.fromarray(np.ascontiguousarray(stored.pixels[..., :3])).resize((64, 64), Image.Resampling.BOX, box=box)
    close(np.asarray(ours), np.asarray(whole.resize((64, 64), Image.Resampling.BOX)))


def test_a_limit_of_pixels_is_for_every_format(picture, encoded):
    for kind in ("JPEG", "PNG"):
        data = encoded(picture(0), kind)
        with pytest.raises(Unreadable, match=r"96×72 pixels are more than 6,911"):
            read_image(data, quality=95, max_pixels=96 * 72 - 1)
        assert read_image(data, quality=95, max_pixels=96 * 72).width == 96
