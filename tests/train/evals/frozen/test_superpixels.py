"""Superpixels of named images, against the shards' own members."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import decode_label_map
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
from tests.train.made_shards import write_images, write_shards
from train.config.data import DataSettings
from train.data.shards.open import open_shards
from train.evals.frozen.superpixels import ShardSuperpixels

KEY = "eval_frozen.abo.superpixels"


def truth_of(shards: Path) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Label map, and height and width, of every sample by its source."""
    manifest = Manifest.read(shards)
    reader = open_shards(str(shards), manifest, DataSettings())
    found = {}
    for i in range(manifest.stored):
        members = reader.read(i).members
        meta = json.loads(members["json"])
        found[meta["source"]] = decode_label_map(members["superpixels.png"]), (meta["height"], meta["width"])
    return found


@pytest.mark.parametrize("form", ["{folder}/{stem}.jpg", "{folder}/{stem}", "{stem}.jpg", "{stem}"])
def test_every_image_gets_its_own_superpixels(shards: Path, form: str) -> None:
    truth = truth_of(shards)
    chosen = sorted(truth)[::7]
    names = [form.format(folder=Path(source).parent, stem=Path(source).stem) for source in chosen]
    maps = ShardSuperpixels(str(shards), names, key=KEY)
    assert maps.size == 64
    for i, source in enumerate(chosen):
        labels, shape = truth[source]
        assert maps.read(i, shape).tolist() == labels.tolist()
        assert maps.read(i, (2 * shape[0], 2 * shape[1])).dtype == np.int32
        assert labels.max() < maps.max_superpixels


def test_images_that_are_not_there_are_named_with_what_to_do(shards: Path) -> None:
    with pytest.raises(InputError, match=r"abo.superpixels: .* lacks 2 of 3 images, such as 0; .*make shards"):
        ShardSuperpixels(str(shards), ["000", "0", "class0/001"], key=KEY)
    with pytest.raises(InputError, match="no such folder; `make shards"):
        ShardSuperpixels(str(shards / "none"), ["000"], key=KEY)


def test_an_image_of_other_proportions_is_another_image(shards: Path) -> None:
    maps = ShardSuperpixels(str(shards), ["000"], key=KEY)
    height, width = truth_of(shards)["class0/000.jpg"][1]
    assert maps.read(0, (height + 1, width)).shape == (64, 64)
    with pytest.raises(InputError, match=rf"000 is {width}×{height} in .*, but its annotation is {width}×{height + 9}"):
        maps.read(0, (height + 9, width))


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=2)
    shutil.copytree(tmp_path / "images" / "class0", tmp_path / "images" / "masks")
    settings = ShardSettings.model_validate({"superpixels": {"size": 16, "segments": 4}})
    write_shards(tmp_path / "images", tmp_path / "shards", settings)
    with pytest.raises(InputError, match="has 2 images that may be 000"):
        ShardSuperpixels(str(tmp_path / "shards"), ["001", "000"], key=KEY)
    assert ShardSuperpixels(str(tmp_path / "shards"), ["masks/000", "class0/000"], key=KEY).size == 16


def test_damage_is_named(shards: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    (damaged / "r2o-000001.tar").unlink()
    with pytest.raises(InputError, match=r"r2o-000001.tar is missing; run `make shards` again"):
        ShardSuperpixels(str(damaged), ["000"], key=KEY)
    shutil.copy(shards / "r2o-000001.tar", damaged)
    tar = damaged / "r2o-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b'"source"', b'"sourse"', 1))
    with pytest.raises(InputError, match=r"r2o-000000.tar"):
        ShardSuperpixels(str(damaged), ["000"], key=KEY)
