from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.pictures import BOUNDARY_COLOUR, MARGIN
from preprocess import preview
from preprocess.config import ShardSettings
from preprocess.job import ShardJob
from preprocess.plan import Plan
from preprocess.shard_task import make_shard
from preprocess.sources import list_images


@pytest.fixture
def shards(tmp_path, make_folder):
    """A finished set of three shards, made without Ray."""
    plan = Plan(list_images(make_folder(tmp_path / "images", 7)), ShardSettings(images_per_shard=3))
    job = ShardJob(tmp_path / "shards", plan)
    job.begin()
    for task in plan.tasks():
        job.record(make_shard(task, folder=job.folder))
    job.finish()
    return job.folder.path


def test_spread():
    assert preview.spread(7, 24) == list(range(7))
    assert preview.spread(101, 3) == [0, 50, 100]
    assert preview.spread(1, 1) == [0]


def test_sheet_shows_images_beside_their_borders(shards, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert preview.main(["--shards", str(shards), "--out", str(out), "--count", "5"]) == 0
    assert capsys.readouterr().out == f"superpixels: {out}\n"
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (2 * (preview.TILE + MARGIN) + MARGIN, 6 * (preview.TILE + MARGIN) + MARGIN, 3)
    tile = slice(MARGIN, MARGIN + preview.TILE)
    left, right = pixels[tile, tile], pixels[tile, MARGIN + preview.TILE + MARGIN :][:, : preview.TILE]
    drawn = (right == BOUNDARY_COLOUR).all(axis=2)
    assert 0.03 < drawn.mean() < 0.4
    np.testing.assert_array_equal(right[~drawn], left[~drawn])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--shards", "nowhere", "--out", "x.png"], "nowhere: no such folder"),
        (["--shards", ".", "--out", "x.png"], "no manifest.json"),
    ],
)
def test_no_shards_is_one_line(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert preview.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_damaged_tar_is_named(shards):
    tar = shards / "r2o-000000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(InputError, match=r"r2o-000000\.tar: sample 0 cannot be read"):
        preview.contact_sheet(shards, count=3)


def test_count_below_one(shards):
    with pytest.raises(InputError, match="--count 0"):
        preview.contact_sheet(shards, count=0)
