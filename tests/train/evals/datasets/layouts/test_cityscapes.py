"""Cityscapes: the 19 labelIds that count, against the table of trainIds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import opened, write_image, write_png
from train.evals.datasets.annotated import UNLABELLED

# labelId → trainId, 255 where none
TRAIN_IDS = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255]
TRAIN_IDS += [16, 17, 18]


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        write_image(tmp_path / f"leftImg8bit/{part}/bonn/{part}_000_leftImg8bit.png", 0, (2, 17), "PNG")
        ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
        write_png(tmp_path / f"gtFine/{part}/bonn/{part}_000_gtFine_labelIds.png", ids)
    return tmp_path


def test_labels_are_train_ids(cityscapes: Path) -> None:
    data = opened(cityscapes, "labels", "objects", "boxes")
    assert (data.layout, len(data.classes), data.classes[13]) == ("cityscapes", 19, "car")
    assert (data.has, set(data.lacks)) == ({"labels", "objects"}, {"boxes"})
    found = data.val.read(0)
    assert found.labels is not None
    assert found.objects is not None
    expected = [UNLABELLED if t == 255 else t for t in TRAIN_IDS]
    assert found.labels.ravel().tolist() == expected
    assert found.objects.classes == tuple(range(19))


def test_what_is_wrong_is_named(cityscapes: Path) -> None:
    (cityscapes / "leftImg8bit/val/bonn/readme.txt").touch()
    assert any("1 files below val are no images" in note for note in opened(cityscapes, "labels").notes)
    path = cityscapes / "gtFine/val/bonn/val_000_gtFine_labelIds.png"
    write_png(path, np.full((2, 17), 34, np.uint8))
    with pytest.raises(InputError, match=r"labelIds\.png holds class id 34, but ids must be 0 … 33 or 255"):
        opened(cityscapes, "labels")
    path.unlink()
    with pytest.raises(InputError, match=r"labelIds\.png is listed, but cannot be read"):
        opened(cityscapes, "labels")
    with pytest.raises(InputError, match="leftImg8bit/test: no such folder"):
        opened(cityscapes, "labels", val_list="test")
