"""Class folders: ids by name, and what is no image counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import opened, write_image


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, name in enumerate(("train/dog/a.jpg", "train/dog/deep/b.PNG", "train/cat/a.webp", "val/dog/a.JPEG")):
        write_image(root / name, i, kind=("JPEG", "PNG", "WEBP", "JPEG")[i])
    return root


def test_classes_are_the_folders_of_train_by_name(folders: Path) -> None:
    (folders / "train/dog/notes.txt").touch()
    data = opened(folders, "class_id", "labels")
    assert (data.layout, data.classes, data.background) == ("classes", ("cat", "dog"), None)
    assert (data.has, data.train_has, set(data.lacks)) == ({"class_id"}, {"class_id"}, {"labels"})
    assert data.train is not None
    assert data.train.names == ("train/cat/a.webp", "train/dog/a.jpg", "train/dog/deep/b.PNG")
    assert [data.train.read(i).class_id for i in range(3)] == [0, 1, 1]
    assert (data.val.names, data.val.read(0).class_id) == (("val/dog/a.JPEG",), 1)
    np.testing.assert_array_equal(data.train.read(2).image, np.asarray(Image.open(folders / "train/dog/deep/b.PNG")))
    assert "val has no image of class cat" in data.notes
    assert "1 files below dog are no images and were left out: notes.txt" in data.notes


def test_one_folder_of_classes_is_val(folders: Path) -> None:
    data = opened(folders / "train", "class_id")
    assert (data.train, data.classes) == (None, ("cat", "dog"))
    assert [data.val.read(i).class_id for i in range(3)] == [0, 1, 1]


def test_folders_are_named_by_settings(folders: Path) -> None:
    (folders / "val").rename(folders / "test")
    with pytest.raises(InputError, match="has train, but no val to be scored; name it by val_list"):
        opened(folders, "class_id")
    assert opened(folders, "class_id", val_list="test").val.names == ("val/dog/a.JPEG",)
    with pytest.raises(InputError, match="none: no such folder"):
        opened(folders, "class_id", val_list="none")


def test_what_cannot_be_scored_is_named(folders: Path) -> None:
    write_image(folders / "val/cow/a.jpg", 7)
    with pytest.raises(InputError, match=r"val/cow: a class that .*train has not"):
        opened(folders, "class_id")
    (folders / "train/cow").mkdir()
    with pytest.raises(InputError, match="train/cow: no image in it"):
        opened(folders, "class_id")
    (folders / "train/cow/loop").symlink_to(folders / "train")
    with pytest.raises(InputError, match=r"loop.* is a link to a folder above it"):
        opened(folders, "class_id")


def test_a_damaged_image_is_named(folders: Path) -> None:
    path = folders / "train/dog/deep/b.PNG"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"b\.PNG is not a whole image"):
        opened(folders, "class_id")


def test_the_class_is_part_of_the_digest(folders: Path) -> None:
    before = opened(folders, "class_id").val.digest
    (folders / "val/dog").rename(folders / "val/cat")
    assert opened(folders, "class_id").val.digest != before


def test_an_image_that_is_in_both_is_told_of(folders: Path) -> None:
    (folders / "val/dog/copy.jpg").write_bytes((folders / "train/dog/a.jpg").read_bytes())
    notes = opened(folders, "class_id").notes
    assert "1 images of val are in train too, byte by byte: val/dog/copy.jpg" in notes
