"""Images with label PNGs: ADE20K's numbers, which begin at 1, and others, which begin at 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import SIZE, opened, png_of, write_image, write_png
from train.evals.datasets.annotated import UNLABELLED

ADE = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.15\t11664\t1172\t1\twall\n2\t0.10\t6046\t612\t1\tbuilding, edifice\n"


def ids() -> np.ndarray:
    found = np.zeros(SIZE, dtype=np.uint8)
    found[10:20], found[20:30], found[30:31] = 1, 2, 255
    return found


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    root = tmp_path / "ADEChallengeData2016"
    for i, name in enumerate(("training/t1", "training/t2", "validation/v1")):
        write_image(root / f"images/{name}.jpg", i)
        write_png(root / f"annotations/{name}.png", ids())
    (root / "objectInfo150.txt").write_text(ADE)
    return root


@pytest.mark.parametrize("above", [False, True])
def test_ade_numbers_begin_at_1(ade: Path, above: bool) -> None:
    data = opened(ade.parent if above else ade, "labels", "objects", "boxes")
    assert (data.layout, data.classes, data.background) == ("labels", ("wall", "building, edifice"), None)
    assert (data.has, data.train_has, set(data.lacks)) == ({"labels", "objects"}, {"labels"}, {"boxes"})
    assert data.train is not None
    assert (data.train.names, data.val.names) == (("train/t1.jpg", "train/t2.jpg"), ("val/v1.jpg",))
    found = data.val.read(0)
    assert found.labels is not None
    assert found.objects is not None
    assert {i: int(found.labels[ids() == i][0]) for i in (0, 1, 2, 255)} == {0: UNLABELLED, 1: 0, 2: 1, 255: UNLABELLED}
    assert found.objects.classes == (0, 1)
    np.testing.assert_array_equal(found.objects.ids == 2, ids() == 2)


def test_other_numbers_begin_at_0_or_where_that_is_said(ade: Path) -> None:
    (ade / "classes.txt").write_text("background\nwall\nhouse\n")
    data = opened(ade, "labels", "objects")
    assert (data.classes, data.background) == (("background", "wall", "house"), 0)
    np.testing.assert_array_equal(data.val.read(0).labels, np.where(ids() == 255, UNLABELLED, ids().astype(int)))
    (ade / "classes.txt").write_text("wall\nhouse\n")
    with pytest.raises(InputError, match=r"t1\.png|v1\.png holds class id 2, but ids must be 0 … 1 or 255"):
        opened(ade, "labels")
    data = opened(ade, "labels", first_class_id=1)
    (ade / "classes.txt").write_text("wall\nhouse\nsky\n")
    assert data.val.digest != opened(ade, "labels", first_class_id=0).val.digest  # the same files mean other classes
    assert int(np.min(data.val.read(0).labels)) == 0
    assert any("the first is id 1 of masks" in note for note in data.notes)


def test_16_bits_name_more_classes(ade: Path) -> None:
    (ade / "classes.txt").write_text("".join(f"c{i}\n" for i in range(400)))
    big = ids().astype(np.uint16) + 100
    big[0, 0] = 65535
    (ade / "annotations/validation/v1.png").write_bytes(png_of(big, depth=16))
    found = opened(ade, "labels").val.read(0).labels
    np.testing.assert_array_equal(found, np.where(big == 65535, UNLABELLED, big.astype(int)))


def test_folders_without_parts_are_val(tmp_path: Path) -> None:
    write_image(tmp_path / "images/deep/a.png", 0, kind="PNG")
    write_png(tmp_path / "labels/deep/a.png", ids())
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = opened(tmp_path, "labels")
    assert (data.train, data.val.names) == (None, ("val/deep/a.png",))
    write_png(tmp_path / "labels/deep/b.png", ids())
    assert any("1 label PNGs of . have no image" in note for note in opened(tmp_path, "labels").notes)


def test_what_does_not_fit_is_named(ade: Path) -> None:
    write_image(ade / "images/validation/v1.png", 0, kind="PNG")
    with pytest.raises(InputError, match=r"v1\.jpg and v1\.png have one mask, v1\.png; rename one"):
        opened(ade, "labels")
    (ade / "images/validation/v1.png").rename(ade / "images/validation/v2.png")
    with pytest.raises(InputError, match=r"validation/v2\.png is listed, but cannot be read"):
        opened(ade, "labels")
    with pytest.raises(InputError, match="images/none: no such folder"):
        opened(ade, "labels", train_list="none")
    (ade / "objectInfo150.txt").write_text(ADE + "a line\n")
    with pytest.raises(InputError, match="is not ADE20K's table of classes"):
        opened(ade, "labels")
    (ade / "objectInfo150.txt").unlink()
    with pytest.raises(InputError, match=r"must have images, one of annotations, labels, masks, and classes\.txt"):
        opened(ade, "labels", layout="labels")
