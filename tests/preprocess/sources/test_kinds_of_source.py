"""Which kind of source a place is, and which kinds it can be made to be by `format`."""

from __future__ import annotations

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from tests.preprocess.sources.named_files import paths, touch


@pytest.mark.parametrize("inside", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"])
def test_kaggles_root_names_the_folder_to_give(tmp_path, inside):
    touch(tmp_path, f"{inside}/train/n01/1.JPEG", f"{inside}/val/1.JPEG", "LOC_val_solution.csv")
    with pytest.raises(InputError, match=f"train, val, test images in one; give {tmp_path}/{inside}/train"):
        list_images(tmp_path)
    listing = list_images(tmp_path / inside / "train")
    assert ([source.name for source in listing], listing.classes) == ([b"n01/1.JPEG"], ("n01",))


def test_training_and_validation_folders_are_not_mixed(tmp_path):
    touch(tmp_path, "train/n01/1.jpg", "val/n01/2.jpg", "labels.csv")
    with pytest.raises(InputError, match=f"train, val images in one; give {tmp_path}/train, or set"):
        list_images(tmp_path)
    assert paths(tmp_path, format="folder") == [b"train/n01/1.jpg", b"val/n01/2.jpg"]
    assert paths(tmp_path / "train") == [b"n01/1.jpg"]


def test_coco(tmp_path):
    touch(tmp_path, "annotations/instances.json", "train2017/2.jpg", "train2017/1.jpg", "val2017/3.jpg")
    listing = list_images(tmp_path)
    assert [source.name for source in listing] == [b"train2017/1.jpg", b"train2017/2.jpg"]
    assert (listing.classes, listing.described, listing.root) == ((), "COCO's train2017", str(tmp_path))
    assert paths(tmp_path, split="val2017") == [b"val2017/3.jpg"]
    assert paths(tmp_path / "train2017") == [b"1.jpg", b"2.jpg"]
    with pytest.raises(InputError, match=r"COCO without test2017; set shards\.source\.split to train2017 or val2017"):
        list_images(tmp_path, SourceSettings(split="test2017"))
    with pytest.raises(InputError, match="no folder nope"):
        list_images(tmp_path, SourceSettings(format="coco", split="nope"))


def test_archives_and_folders_in_one_ask_for_the_format(tmp_path):
    touch(tmp_path, "n01/1.jpg", "backup.tar")
    with pytest.raises(
        InputError, match=r"both \.tar files and folders; set shards\.source\.format=folder or webdataset"
    ):
        list_images(tmp_path)
    assert paths(tmp_path, format="folder") == [b"n01/1.jpg"]


def test_images_beside_archives_are_a_folder(tmp_path):
    touch(tmp_path, "1.jpg", "backup.tar", "data.parquet")
    listing = list_images(tmp_path)
    assert (len(listing), listing.ignored, listing.described) == (1, 2, "a folder")


@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_a_format_of_folders_on_a_file(tmp_path, kind):
    touch(tmp_path, "a.tar")
    with pytest.raises(InputError, match=rf"a\.tar: a file, but shards\.source\.format={kind} takes a folder"):
        list_images(tmp_path / "a.tar", SourceSettings(format=kind))


@pytest.mark.parametrize("kind", ["list", "tar", "webdataset", "parquet", "folder", "coco"])
def test_a_format_of_nothing(tmp_path, kind):
    with pytest.raises(InputError, match=r"nowhere: (no such|no folder)"):
        list_images(tmp_path / "nowhere", SourceSettings(format=kind))


def test_a_pattern_of_other_files(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"the pattern matches a\.jpg"):
        list_images(tmp_path / "*.jpg")
    with pytest.raises(InputError, match="no such file or folder"):
        list_images(tmp_path / "*.jpg", SourceSettings(format="folder"))


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, "set [1]/a.jpg", "set 1/b.jpg")
    assert paths(tmp_path / "set [1]") == [b"a.jpg"]
