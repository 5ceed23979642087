"""The bytes of a file → the JPEG that is stored and its pixels, or the reason why not.

Strict: what a decoder would have to guess at is unreadable. The content decides the format, never the name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pipeline.artifacts.sample import decode_jpeg

FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 89_478_485  # Pillow's bound against decompression bombs, here for JPEG too
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 258, 262
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """The bytes are no image that can be decoded in full; the message is the reason for the quarantine."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """`jpeg` as it is stored, `pixels` uint8 (H, W, 3) as it decodes, and what storing `changed`."""

    jpeg: bytes
    pixels: np.ndarray
    changed: tuple[str, ...]


def read_image(data: bytes, *, quality: int) -> StoredImage:
    """Decode a file strictly. A plain RGB or grey JPEG keeps its bytes, all else is encoded at `quality`, 4:4:4.

    Raises:
        Unreadable: with the reason.
    """
    if not data:
        raise Unreadable("empty file")
    is_jpeg = data.startswith(b"\xff\xd8")
    pixels, changed = _read_jpeg(data) if is_jpeg else _read_other(data)
    if not changed:
        return StoredImage(jpeg=data, pixels=pixels, changed=())
    try:
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")
    except ValueError as error:
        raise Unreadable(f"cannot be stored as JPEG: {error}") from None
    return StoredImage(jpeg=jpeg, pixels=decode_jpeg(jpeg), changed=tuple(changed))


def _read_jpeg(data: bytes) -> tuple[np.ndarray, list[str]]:
    changed = []
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        _check_size(int(width), int(height))
        if colour in ("CMYK", "YCCK"):
            pixels = _rgb_of_cmyk(data)
            changed.append(f"colour {colour}")
        else:
            pixels = decode_jpeg(data)
    except ValueError as error:
        raise Unreadable(f"JPEG: {error}") from None
    exif = [body[6:] for marker, body in _segments(data) if marker == 0xE1 and body.startswith(b"Exif\0\0")]
    if (orientation := exif_orientation(exif[0]) if exif else 1) in UPRIGHT:
        pixels = np.asarray(Image.fromarray(pixels).transpose(UPRIGHT[orientation]))
        changed.append(f"orientation {orientation}")
    return pixels, changed


def _rgb_of_cmyk(data: bytes) -> np.ndarray:
    """A four-colour JPEG as Pillow converts CMYK; files with Adobe's marker hold their values inverted."""
    inks = simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)
    if any(marker == 0xEE and body.startswith(b"Adobe") for marker, body in _segments(data)):
        inks = 255 - inks
    height, width = inks.shape[:2]
    return np.asarray(Image.frombytes("CMYK", (width, height), inks.tobytes()).convert("RGB"))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each JPEG segment before the first scan."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xDA:
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        yield marker, data[position + 4 : end]
        position = end


def exif_orientation(tiff: bytes) -> int:
    """Orientation 1 … 8 in the first directory of an EXIF block (TIFF header on); 1 where it gives none."""
    if tiff[:2] not in (b"II", b"MM"):
        return 1

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], "little" if tiff[:2] == b"II" else "big")

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == ORIENTATION:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _read_other(data: bytes) -> tuple[np.ndarray, list[str]]:
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, RuntimeWarning):  # Pillow only warns of cut metadata and of huge images
                warnings.simplefilter("error", category)
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            return _decode_with_pillow(data)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image: no known format begins like this") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        raise Unreadable(f"cannot be decoded: {error}" if str(error) else type(error).__name__) from None


def _decode_with_pillow(data: bytes) -> tuple[np.ndarray, list[str]]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(*image.size)
        image.verify()  # the checksums of a PNG; no more can be done with this object
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        changed = [f"format {image.format}"]
        orientation = _orientation(image)
        if getattr(image, "is_animated", False):
            changed.append("first frame")
        image.load()
        if image.mode != "RGB":
            changed.append(f"mode {image.mode}")
        rgb = _rgb(image)
        pending = _orientation(image)  # Pillow turns a TIFF itself and then drops the tag; a PNG's may come last
    if pending in UPRIGHT:
        rgb = rgb.transpose(UPRIGHT[pending])
    if (turned := max(orientation, pending)) in UPRIGHT:
        changed.append(f"orientation {turned}")
    return np.asarray(rgb), changed


def _orientation(image: Image.Image) -> int:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(ORIENTATION, 1))
    return exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))


def _rgb(image: Image.Image) -> Image.Image:
    """What `convert("RGB")` gives, except that 16-bit grey is scaled to 8 bit and not clipped."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        most = 2 ** int(tags.get(BITS_PER_SAMPLE, (16,))[0]) - 1
        grey = np.asarray(image).astype(np.float64) * 255 / most
        if tags.get(PHOTOMETRIC) == 0:  # white is zero
            grey = 255 - grey
        return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Unreadable(f"32-bit pixels (mode {image.mode}) have no range to scale from")
    return image.convert("RGB")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{width}×{height} pixels are more than {MAX_PIXELS:,}")
