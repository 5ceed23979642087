"""Bytes of a file to the pixels of an image or the ids of a mask. The content decides the format, never the name."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import simplejpeg
from jaxtyping import UInt, UInt8
from PIL import Image, UnidentifiedImageError

from pipeline.artifacts.png import PNG_SIGNATURE, open_whole_png
from pipeline.artifacts.sample import decode_jpeg
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_regular
from pipeline.foundation.pictures import VOID, voc_palette

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_JPEG_START = b"\xff\xd8"
_OTHER_FORMATS = ("WEBP", "BMP", "TIFF")
_FOUR_INKS = ("CMYK", "YCCK")
_COLOURS = ("RGB", "RGBA", "LA", "PA")
_PILLOW_RAISES = (OSError, SyntaxError, LookupError, EOFError, struct.error, Image.DecompressionBombError)
_DEPTH_AT = 24  # in a PNG
_NUM_VOC = 21  # classes whose colours people know
_VOC_PALETTE = voc_palette()
_ALL_COLOURS = {tuple(colour) for colour in _VOC_PALETTE.tolist()}
_REPLACE = "replace it or take it off the list"


def read_listed(path: Path) -> bytes:
    """All bytes of a file that a list or a folder names.

    Raises:
        InputError: it cannot be read, or is a pipe or a device, which may have no end.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise InputError(
            f"{path} is listed, but cannot be read: {error.strerror}; add it or shorten the list"
        ) from None


def find_image(folder: Path, name: str) -> Path:
    """Where an image lies of which a list gives the name without suffix; `.jpg` where there is none."""
    for suffix in (".jpg", ".jpeg", ".JPG", ".JPEG", ".png", ".PNG"):
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    return folder / f"{name}.jpg"


def decode_picture(path: Path, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB, decoded strictly. EXIF orientation is ignored, as the tools of all our layouts do.

    Raises:
        InputError: it is no JPEG, PNG, WebP, BMP or TIFF, not a whole one, or has more than 8 bits a channel.
    """
    jpeg = data.startswith(_JPEG_START)
    try:
        return _decode_jpeg(data) if jpeg else _decode_other(data)
    except ValueError as error:
        kind = "whole JPEG" if jpeg or path.suffix.lower() in (".jpg", ".jpeg") else "whole image"
        raise InputError(f"{path} is not a {kind} ({error}); {_REPLACE}") from None


def decode_ids(path: Path, data: bytes, *, num_classes: int, most_bits: int = 8) -> UInt[np.ndarray, "h w"]:
    """A palette or grey PNG as the ids that are stored in it, uint8 or uint16.

    Grey of 1, 2 or 4 bits gives the stored numbers; Pillow stretches them to 0 … 255.

    Args:
        num_classes: a 1-bit mask can name two; where there are more, nobody knows which it means. With VOC's 21, a
            palette of VOC's colours must have them in VOC's order.
        most_bits: of a grey mask, 8 or 16.
    Raises:
        InputError: it is no whole PNG, has colours instead of ids, or ids that were renumbered.
    """
    mask = _open_mask(path, data)
    depth = data[_DEPTH_AT]
    if mask.mode == "P":
        ids: np.ndarray = np.array(mask)
        if num_classes == _NUM_VOC:
            _refuse_renumbered(path, ids, mask)
        return ids
    if mask.mode == "I;16" and most_bits == 16:
        return np.array(mask, dtype=np.uint16)
    if mask.mode not in ("1", "L"):
        kind = {"I;16": "16-bit grey", "RGB": "RGB (colours are no ids; save the ids themselves)"}.get(mask.mode)
        raise InputError(f"{path}: a mask is an 8-bit palette or grey PNG of class ids, not {kind or mask.mode}")
    if depth == 1 and num_classes > 2:
        raise InputError(
            f"{path}: a mask of 1 bit a pixel can name 2 classes, and there are {num_classes}; "
            "save class ids as an 8-bit PNG, or name 2 classes in classes.txt"
        )
    stored = np.array(mask).astype(np.uint8)
    return stored if mask.mode == "1" else stored // np.uint8(255 // (2**depth - 1))


def decode_grey(path: Path, data: bytes) -> UInt8[np.ndarray, "h w"]:
    """The first channel of a PNG as grey levels 0 … 255.

    Raises:
        InputError: it is no whole PNG, or one of 16 bits or of a palette with other colours than grey.
    """
    mask = _open_mask(path, data)
    if mask.mode == "P" and (grey := _grey_of_palette(mask)) is not None:
        return grey
    if mask.mode not in ("1", "L", *_COLOURS):
        raise InputError(f"{path}: a mask of grey levels is a grey PNG of 8 bits, not one of mode {mask.mode}")
    levels: np.ndarray = np.array(mask.convert("L") if mask.mode == "1" else mask.getchannel(0))
    return levels


def decode_rgb_mask(path: Path, data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A PNG whose channels together hold ids. Raises InputError where it is no whole RGB one."""
    mask = _open_mask(path, data)
    if mask.mode != "RGB":
        raise InputError(f"{path}: ids of this layout are written as RGB (R + 256·G …), not as mode {mask.mode}")
    return np.array(mask)


def check_same_size(mask_path: Path, mask: np.ndarray, image_path: Path, image: np.ndarray) -> None:
    """Raises InputError where a mask has another size than its image."""
    if mask.shape[:2] != image.shape[:2]:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
        raise InputError(f"{mask_path} is {mask_width}×{mask_height}, but {image_path.name} is {width}×{height}")


def check_ids(path: Path, ids: np.ndarray, *, num_classes: int, void: int = VOID, names: str = "classes.txt") -> None:
    """Raises InputError where a mask holds an id that is neither of a class nor `void`; `names` lists the classes."""
    if int(np.where(ids == void, 0, ids).max(initial=0)) >= num_classes:
        wrong = int(ids[(ids >= num_classes) & (ids != void)].min())
        known = f"0 … {num_classes - 1} or {void} (void)"
        raise InputError(f"{path} holds class id {wrong}, but ids must be {known}; see {names}")


def no_foreground(masks: Path, count: int) -> InputError:
    """What is said of a list where no mask shows anything but background and void."""
    return InputError(
        f"{masks}: none of {count} masks shows a class, all pixels are background or void; "
        "ids must be 1, 2, … (255 is void, so masks of 0 and 255 show nothing)"
    )


def _open_mask(path: Path, data: bytes) -> Image.Image:
    try:
        return open_whole_png(data)
    except ValueError as error:
        reason = "it is a JPEG, and JPEG changes ids" if data.startswith(_JPEG_START) else error
        raise InputError(f"{path} is not a whole PNG ({reason}); {_REPLACE}") from None


def _decode_jpeg(data: bytes) -> np.ndarray:
    _, _, colour, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    if colour not in _FOUR_INKS:
        return decode_jpeg(data)
    simplejpeg.decode_jpeg(data, colorspace="CMYK", strict=True)  # Pillow alone would pass over damage
    return np.array(Image.open(io.BytesIO(data), formats=("JPEG",)).convert("RGB"))


def _decode_other(data: bytes) -> np.ndarray:
    """Raises ValueError."""
    if data.startswith(PNG_SIGNATURE):
        image = open_whole_png(data)
    else:
        try:
            image = Image.open(io.BytesIO(data), formats=_OTHER_FORMATS)
            image.load()
        except UnidentifiedImageError:
            raise ValueError("no image of a format that is read here") from None
        except _PILLOW_RAISES as error:
            raise ValueError(f"it does not decode ({error})") from None
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"more than 8 bits a channel, mode {image.mode}")
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError("more than one picture in it")
    return np.array(image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB"))


def _grey_of_palette(mask: Image.Image) -> np.ndarray | None:
    """The colours of a palette image as grey levels; None where one of them is not grey."""
    colours = np.array(mask.convert("RGBA"))[..., :3]
    levels: np.ndarray = colours[..., 0]
    return levels if (colours == levels[..., None]).all() else None


def _refuse_renumbered(path: Path, ids: np.ndarray, mask: Image.Image) -> None:
    """A palette that has VOC's colours at other places was reordered by the program that saved it, and its ids too."""
    palette = np.array(mask.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=1))
    used = used[used < len(palette)]
    if np.array_equal(palette[used], _VOC_PALETTE[used]):
        return
    if all(tuple(colour) in _ALL_COLOURS for colour in palette[used].tolist()):
        wrong = next(i for i in used.tolist() if (palette[i] != _VOC_PALETTE[i]).any())
        raise InputError(
            f"{path}: its palette has VOC's colours in another order (id {wrong} is {tuple(palette[wrong].tolist())}), "
            "so a program renumbered its ids; save it with VOC's palette"
        )
