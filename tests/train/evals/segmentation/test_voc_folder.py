"""A folder of VOC's layout: a damaged mask is refused, no name in a list leads out, and what changes is found."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import voc_palette
from train.evals.segmentation.voc_folder import VocFolder

SEED, FLIPS = 20261127, 1500


def test_a_flipped_bit_of_a_palette_mask_is_refused(voc: Path) -> None:
    file = VocFolder.open(voc).file("003")
    picture = Image.open(file.mask)
    picture.putpalette(voc_palette().tobytes())
    picture.save(file.mask)
    data, expected = file.mask.read_bytes(), np.asarray(Image.open(file.mask))
    np.testing.assert_array_equal(file.read(3)[0].labels, expected)
    for bit in np.random.default_rng(SEED).integers(0, 8 * len(data), FLIPS).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.mask.write_bytes(flipped)
        with pytest.raises(InputError, match=r"003\.png is not a whole PNG \(.*\); replace it") as caught:
            file.read(3)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/000", "../JPEGImages/000", "a/../../000", "000\0"])
def test_no_name_in_a_list_leads_out_of_the_folder(voc: Path, name: str) -> None:
    (voc / "ImageSets/Segmentation/val.txt").write_text(f"001\n{name}\n")
    with pytest.raises(InputError, match=r"val\.txt lists .*, which is no name below JPEGImages"):
        VocFolder.open(voc).split("val")


def test_the_pixels_of_every_class_are_counted(voc: Path) -> None:
    folder = VocFolder.open(voc)
    masks = [np.asarray(Image.open(folder.file(name).mask)) for name in folder.names("val")]
    expected = [sum(int((mask == label).sum()) for mask in masks) for label in range(3)]
    assert folder.split("val").pixels == expected
    assert min(expected) > 0


@pytest.mark.parametrize("which", ["image", "mask"])
def test_a_file_that_changes_while_it_is_in_use_is_found(voc: Path, which: str) -> None:
    split = VocFolder.open(voc).split("val")
    file = split.files[2]
    before = split[2]
    if which == "mask":
        Image.fromarray(np.zeros_like(before.labels)).save(file.mask)
    else:
        buffer = io.BytesIO()
        Image.fromarray(before.image).save(buffer, "JPEG", quality=30)
        file.image.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=rf"{file.name}.* changed since it was first read; run the same command again"):
        split[2]
    np.testing.assert_array_equal(split[1].labels, np.asarray(Image.open(split.files[1].mask)))


def test_the_digest_is_of_all_names_and_contents(voc: Path) -> None:
    split = VocFolder.open(voc).split("val")
    digest = hashlib.sha256()
    for file in split.files:
        for part in (file.name.encode(), file.image.read_bytes(), file.mask.read_bytes()):
            digest.update(hashlib.sha256(part).digest())
    assert split.digest == digest.hexdigest()
