"""Pixels and ids are those of Pillow and of the stored bytes; what could be guessed at only is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import voc_palette
from tests.train.evals.datasets.small_folders import encoded, palette_png, picture, png_of, voc_mask
from train.evals.datasets.decode import (
    check_ids,
    check_same_size,
    decode_grey,
    decode_ids,
    decode_picture,
    decode_rgb_mask,
    find_image,
    read_listed,
)

PATH = Path("folder/a.png")


@pytest.mark.parametrize(("depth", "most"), [(1, 2), (2, 4), (4, 16), (8, 256)])
@pytest.mark.parametrize("colour", [0, 3])
def test_ids_are_the_stored_numbers_at_every_depth(depth: int, most: int, colour: int) -> None:
    ids = np.random.default_rng(depth).integers(0, most, (7, 13)).astype(np.uint8)
    ids[0, :2] = 0, most - 1
    palette = np.random.default_rng(0).integers(1, 255, (most, 3), dtype=np.uint8).tobytes() if colour else b""
    found = decode_ids(PATH, png_of(ids, depth=depth, colour=colour, palette=palette), num_classes=2)
    np.testing.assert_array_equal(found, ids)


def test_16_bit_ids_are_taken_where_they_are_allowed() -> None:
    ids = np.array([[0, 300, 65535]], dtype=np.uint16)
    data = png_of(ids, depth=16)
    np.testing.assert_array_equal(decode_ids(PATH, data, num_classes=400, most_bits=16), ids)
    with pytest.raises(InputError, match=r"a\.png: a mask is an 8-bit palette or grey PNG .* not 16-bit grey"):
        decode_ids(PATH, data, num_classes=400)


def test_one_bit_cannot_name_three_classes() -> None:
    with pytest.raises(InputError, match="can name 2 classes, and there are 3"):
        decode_ids(PATH, png_of(np.eye(4, dtype=np.uint8), depth=1), num_classes=3)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_masks_of_colours_are_refused(channels: int) -> None:
    pixels = np.zeros((4, 5, channels), dtype=np.uint8)
    with pytest.raises(InputError, match=r"a mask is an 8-bit palette or grey PNG of class ids, not (RGB|RGBA|LA)"):
        decode_ids(PATH, encoded(pixels, "PNG"), num_classes=21)


def test_a_mask_that_is_a_jpeg_is_told_so() -> None:
    with pytest.raises(InputError, match="is a JPEG, and JPEG changes ids"):
        decode_ids(PATH, encoded(voc_mask(0)), num_classes=21)


def test_a_palette_in_another_order_is_refused() -> None:
    ids = voc_mask(2)
    order = np.random.default_rng(1).permutation(256).astype(np.uint8)
    renumbered, palette = np.argsort(order).astype(np.uint8)[ids], voc_palette()[order]
    with pytest.raises(InputError, match="VOC's colours in another order"):
        decode_ids(PATH, palette_png(renumbered, palette), num_classes=21)
    own = decode_ids(
        PATH, palette_png(renumbered, palette), num_classes=22
    )  # of classes that VOC's colours do not name
    np.testing.assert_array_equal(own, renumbered)


def test_a_palette_of_other_colours_says_nothing_of_ids() -> None:
    palette = np.random.default_rng(2).integers(1, 63, (256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_ids(PATH, palette_png(voc_mask(1), palette), num_classes=21), voc_mask(1))


def test_grey_levels_are_the_first_channel() -> None:
    pixels = picture(0)
    for channels in (pixels, np.dstack([pixels, pixels[..., 1]]), np.dstack([pixels[..., 0], pixels[..., 1]])):
        np.testing.assert_array_equal(decode_grey(PATH, encoded(channels, "PNG")), pixels[..., 0])
    bits = np.eye(5, dtype=np.uint8)
    np.testing.assert_array_equal(decode_grey(PATH, png_of(bits, depth=1)), bits * 255)
    np.testing.assert_array_equal(decode_grey(PATH, png_of(bits * 2, depth=2)), bits * 170)
    inverted = np.repeat(255 - np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    np.testing.assert_array_equal(decode_grey(PATH, palette_png(pixels[..., 0], inverted)), 255 - pixels[..., 0])
    for data in (palette_png(voc_mask(0)), png_of(bits.astype(np.uint16), depth=16)):
        with pytest.raises(InputError, match="is a grey PNG of 8 bits, not one of mode"):
            decode_grey(PATH, data)


def test_only_rgb_holds_big_ids() -> None:
    np.testing.assert_array_equal(decode_rgb_mask(PATH, encoded(picture(1), "PNG")), picture(1))
    with pytest.raises(InputError, match="not as mode L"):
        decode_rgb_mask(PATH, encoded(voc_mask(0), "PNG"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_pictures_of_every_format_are_those_of_pillow(kind: str) -> None:
    data = encoded(picture(3), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode_picture(Path("a.jpg"), data), picture(3))  # the content decides
    with pytest.raises(InputError, match=r"a\.webp is not a whole image"):
        decode_picture(Path("a.webp"), data[: len(data) // 2])


def test_jpegs_of_one_three_and_four_colours() -> None:
    smooth = np.kron(picture(4, (6, 8)), np.ones((8, 8, 1), dtype=np.uint8))
    for mode in ("L", "RGB", "CMYK"):
        buffer = io.BytesIO()
        Image.fromarray(smooth).convert(mode).save(buffer, "JPEG", quality=95, subsampling=0)
        expected = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
        found = decode_picture(PATH, buffer.getvalue())
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 4  # roundings of two decoders
        with pytest.raises(InputError, match="is not a whole JPEG"):
            decode_picture(PATH, buffer.getvalue()[: buffer.tell() // 2])


def test_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(picture(5)).save(buffer, "JPEG", exif=exif)
    assert decode_picture(PATH, buffer.getvalue()).shape == picture(5).shape


def test_what_is_no_8_bit_picture_is_refused() -> None:
    two = io.BytesIO()
    Image.fromarray(picture(0)).save(two, "TIFF", save_all=True, append_images=[Image.fromarray(picture(1))])
    for data, reason in (
        (b"", "no image of a format"),
        (encoded(picture(0), "GIF"), "no image of a format"),
        (png_of(np.eye(4, dtype=np.uint16), depth=16), "more than 8 bits"),
        (two.getvalue(), "more than one picture"),
    ):
        with pytest.raises(InputError, match=reason):
            decode_picture(PATH, data)


def test_ids_and_sizes_are_checked() -> None:
    ids = np.array([[0, 2, 255]], dtype=np.uint8)
    check_ids(PATH, ids, num_classes=3)
    with pytest.raises(InputError, match=r"holds class id 2, but ids must be 0 … 1 or 255 \(void\); see classes\.txt"):
        check_ids(PATH, ids, num_classes=2)
    with pytest.raises(InputError, match=r"holds class id 255, but ids must be 0 … 2 or 1000"):
        check_ids(PATH, ids, num_classes=3, void=1000)
    with pytest.raises(InputError, match=r"a\.png is 3×1, but b\.jpg is 64×48"):
        check_same_size(PATH, ids, Path("b.jpg"), picture(0))


def test_images_are_found_under_their_suffixes(tmp_path: Path) -> None:
    assert find_image(tmp_path, "a") == tmp_path / "a.jpg"
    for suffix in (".png", ".JPEG", ".jpeg", ".jpg"):  # each is preferred to those before it
        (tmp_path / f"a{suffix}").touch()
        assert find_image(tmp_path, "a") == tmp_path / f"a{suffix}"


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match=r"is listed, but cannot be read: .*; add it or shorten the list"):
            read_listed(path)
