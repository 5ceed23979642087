"""CUB: the splits, and the grey level from which on a pixel is the bird's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import SIZE, opened, palette_png, write_image, write_png

NAMES = [f"00{1 + i // 3}.bird/b{i}.jpg" for i in range(6)]


def levels(number: int) -> np.ndarray:
    """Every grey level, in another order each."""
    return np.random.default_rng(number).permutation(np.arange(np.prod(SIZE)) % 256).reshape(SIZE).astype(np.uint8)


def write_split(path: Path, values: str) -> None:
    path.write_text("".join(f"{i + 1} {value}\n" for i, value in enumerate(values)))


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    for i, name in enumerate(NAMES):
        write_image(root / "images" / name, i)
        write_png((root / "segmentations" / name).with_suffix(".png"), levels(i))
    (root / "images.txt").write_text("".join(f"{i + 1} {name}\n" for i, name in enumerate(NAMES)))
    write_split(root / "train_test_split.txt", "110010")
    return root


def test_birds_are_above_one_half(cub: Path) -> None:
    data = opened(cub, "objects", "labels")
    assert (data.layout, data.classes, data.background) == ("cub", ("background", "bird"), 0)
    assert data.train is not None
    assert data.val.names == (NAMES[2], NAMES[3], NAMES[5])
    assert data.train.names == (NAMES[0], NAMES[1], NAMES[4])
    assert any("test is 0 of train_test_split.txt, not ReDO's split" in note for note in data.notes)
    found = data.val.read(1)
    expected = np.asarray(Image.open(cub / f"segmentations/{NAMES[3][:-3]}png")) / 255 > 0.5
    assert found.objects is not None
    np.testing.assert_array_equal(found.objects.ids, expected)
    np.testing.assert_array_equal(found.labels, expected)
    assert found.objects.classes == (1,)
    assert expected.sum() == (levels(3) >= 128).sum()


def test_redo_s_split_is_taken_where_it_is_given(cub: Path, tmp_path: Path) -> None:
    split = tmp_path / "train_val_test_split.txt"
    write_split(split, "012210")
    data = opened(cub.parent, "objects", split=split)
    assert data.train is not None
    assert data.val.names == (NAMES[2], NAMES[3])
    assert data.train.names == (NAMES[0], NAMES[5])
    assert any("test is class 2 of train_val_test_split.txt" in note for note in data.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0\n2 0\n3 2\n4 2\n5 1\n", r"split\.txt is not of these images: id 6 is in it or in images\.txt"),
        ("1 0\n2 0\n3 2\n4 2\n5 1\n6 3\n", "'6 3' is no image id and one of 0, 1, 2"),
        ("1 0\n2 0\n3 2\n4 2\n5 1\n6 2\n6 2\n", "a line of 6 twice"),
        ("1 0\n2 0\n3 1\n4 1\n5 1\n6 1\n", "no image in it; test must have some"),
    ],
)
def test_splits_that_do_not_fit_are_named(cub: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(cub, "objects", split=tmp_path / "split.txt")


def test_masks_beside_the_folder_and_masks_that_are_missing(cub: Path) -> None:
    (cub / "segmentations").rename(cub.parent / "segmentations")
    assert opened(cub.parent, "objects").has == {"objects"}
    data = opened(cub, "objects", "boxes")
    assert data.has == frozenset()
    assert "segmentations is missing" in data.lacks["objects"]
    assert data.val.read(0).objects is None
    (cub.parent / f"segmentations/{NAMES[2][:-3]}png").unlink()
    with pytest.raises(InputError, match=r"b2\.png is listed, but cannot be read"):
        opened(cub.parent, "objects")


def test_masks_that_are_no_grey_levels_are_named(cub: Path) -> None:
    masks = [(cub / "segmentations" / name).with_suffix(".png") for name in NAMES]
    for mask in masks:
        write_png(mask, np.eye(*SIZE, dtype=np.uint8))  # 0 and 1
    with pytest.raises(InputError, match="none of 3 masks shows a class"):
        opened(cub, "objects")
    masks[2].write_bytes(palette_png(levels(0)))
    with pytest.raises(InputError, match=r"b2\.png: a mask of grey levels is a grey PNG of 8 bits, not one of mode P"):
        opened(cub, "objects")
    write_png(masks[2], levels(0)[1:])
    with pytest.raises(InputError, match=r"b2\.png is 64×47, but b2\.jpg is 64×48"):
        opened(cub, "objects")


def test_no_name_leads_out(cub: Path) -> None:
    (cub / "images.txt").write_text("1 ../../a.jpg\n")
    with pytest.raises(InputError, match=r"images\.txt lists .*, which is no name below images"):
        opened(cub, "objects")
