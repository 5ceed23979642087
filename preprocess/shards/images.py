"""The bytes of a file → the JPEG that is stored and its pixels, or the reason why not.

Strict: what a decoder would have to guess at is unreadable. The content decides the format, never the name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pipeline.artifacts.sample import decode_jpeg

PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF")
Image.MAX_IMAGE_PIXELS = None  # the bound is ours, for every format
ORIENTATION, BITS_PER_SAMPLE, PHOTOMETRIC = 0x0112, 258, 262
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}


class Unreadable(Exception):
    """The bytes are no image that can be decoded in full; the message is the reason for the quarantine."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """`jpeg` as it is stored, of `width` × `height`, what storing `changed`, and `pixels` as it decodes.

    `pixels`: uint8 (h, w, 4) of R, G, B and an unused byte. They may be a reduction by the DCT, n/8 of the size, in
    which the image ends at (`width`, `height`) · n/8 and the last row and column may lie half beyond it.
    """

    jpeg: bytes
    pixels: np.ndarray
    width: int
    height: int
    changed: tuple[str, ...]

    @property
    def extent(self) -> tuple[float, float]:
        """Where the image ends in `pixels`: (x, y) in pixels, from the left upper corner."""
        eighths = round(8 * max(self.pixels.shape[:2]) / max(self.width, self.height))  # sizes are rounded up
        return self.width * eighths / 8, self.height * eighths / 8


def read_image(data: bytes, *, quality: int, max_pixels: int, min_side: int | None = None) -> StoredImage:
    """Decode a file strictly. A plain RGB or grey JPEG keeps its bytes, all else is encoded at `quality`, 4:4:4.

    Args:
        max_pixels: what has more is unreadable; nothing of it is decoded.
        min_side: the pixels may be reduced to not less than so many in height and in width. None: they are all.
    Raises:
        Unreadable: with the reason.
    """
    if not data:
        raise Unreadable("empty file")
    if data.startswith(b"\xff\xd8"):
        width, height, pixels, changed = _change_of_jpeg(data, max_pixels)
    else:
        pixels, changed = _read_other(data, max_pixels)
    jpeg = data
    if pixels is not None:
        height, width = pixels.shape[:2]
        jpeg, pixels = _encoded(pixels, quality), None
    try:
        reduced = simplejpeg.decode_jpeg(jpeg, "RGBX", min_height=min_side or 0, min_width=min_side or 0, strict=True)
    except ValueError as error:
        raise Unreadable(f"JPEG: {error}") from None
    return StoredImage(jpeg=jpeg, pixels=reduced, width=width, height=height, changed=tuple(changed))


def _encoded(pixels: np.ndarray, quality: int) -> bytes:
    try:
        jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=quality, colorsubsampling="444")
        return jpeg
    except ValueError as error:
        raise Unreadable(f"cannot be stored as JPEG: {error}") from None


def _change_of_jpeg(data: bytes, max_pixels: int) -> tuple[int, int, np.ndarray | None, list[str]]:
    """Width, height, the pixels of a JPEG that cannot be stored as it is (None for one that can), and why not."""
    pixels, changed = None, []
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        _check_size(int(width), int(height), max_pixels)
        if colour in ("CMYK", "YCCK"):
            pixels = _rgb_of_cmyk(data)
            changed.append(f"colour {colour}")
        exif = [body[6:] for marker, body in _segments(data) if marker == 0xE1 and body.startswith(b"Exif\0\0")]
        if (orientation := exif_orientation(exif[0]) if exif else 1) in UPRIGHT:
            pixels = UPRIGHT[orientation](decode_jpeg(data) if pixels is None else pixels)
            changed.append(f"orientation {orientation}")
    except ValueError as error:
        raise Unreadable(f"JPEG: {error}") from None
    return int(width), int(height), pixels, changed


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


def _read_other(data: bytes, max_pixels: int) -> tuple[np.ndarray, list[str]]:
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, RuntimeWarning):  # Pillow only warns of cut metadata and of huge images
                warnings.simplefilter("error", category)
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            return _decode_with_pillow(data, max_pixels)
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("not an image: no known format begins like this") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        raise Unreadable(f"cannot be decoded: {error}" if str(error) else type(error).__name__) from None


def _decode_with_pillow(data: bytes, max_pixels: int) -> tuple[np.ndarray, list[str]]:
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
        _check_size(*image.size, max_pixels)
        image.verify()  # the checksums of a PNG; no more can be done with this object
    with Image.open(io.BytesIO(data), formats=PILLOW_FORMATS) as image:
        changed = [f"format {image.format}"]
        orientation = _orientation(image)
        if getattr(image, "is_animated", False):
            changed.append("first frame")
        image.load()
        if image.mode != "RGB":
            changed.append(f"mode {image.mode}")
        rgb = _rgb(image)
        pending = _orientation(image)  # Pillow turns a TIFF itself and then drops the tag; a PNG's may come last
    if (turned := max(orientation, pending)) in UPRIGHT:
        changed.append(f"orientation {turned}")
    pixels = np.asarray(rgb)
    return UPRIGHT[pending](pixels) if pending in UPRIGHT else pixels, changed


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


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Unreadable(f"{width}×{height} pixels are more than {max_pixels:,}")
