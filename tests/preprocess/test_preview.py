from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import BOUNDARY_COLOUR, MARGIN
from preprocess import make_shards, preview
from preprocess.config import ShardSettings
from preprocess.shards import contact_sheet as contact_sheets
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images


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
    assert contact_sheets.spread(7, 24) == list(range(7))
    assert contact_sheets.spread(101, 3) == [0, 50, 100]
    assert contact_sheets.spread(1, 1) == [0]


def test_sheet_shows_images_beside_their_borders(shards, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert preview.main(["--shards", str(shards), "--out", str(out), "--count", "5"]) == 0
    assert capsys.readouterr().out == f"superpixels: {out}\n"
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (2 * (contact_sheets.TILE + MARGIN) + MARGIN, 6 * (contact_sheets.TILE + MARGIN) + MARGIN, 3)
    tile = slice(MARGIN, MARGIN + contact_sheets.TILE)
    left, right = pixels[tile, tile], pixels[tile, MARGIN + contact_sheets.TILE + MARGIN :][:, : contact_sheets.TILE]
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
    with pytest.raises(InputError, match=r"r2o-000000\.tar: sample 000000000 cannot be read"):
        contact_sheets.contact_sheet(shards, count=3)


def test_count_below_one(shards):
    with pytest.raises(InputError, match="--count 0"):
        contact_sheets.contact_sheet(shards, count=0)


def test_shards_keys_and_maps_can_be_chosen(shards):
    whole = np.asarray(contact_sheets.contact_sheet(shards, count=7))
    step = 2 * (contact_sheets.TILE + MARGIN)

    def pair(pixels: np.ndarray, number: int) -> np.ndarray:
        top, left = number // 3 * step // 2, number % 3 * step
        return pixels[top + MARGIN : top + MARGIN + contact_sheets.TILE, left + MARGIN : left + step]

    by_key = np.asarray(contact_sheets.contact_sheet(shards, count=1, keys=["000000004", "1"]))
    np.testing.assert_array_equal(pair(by_key, 0), pair(whole, 4))
    np.testing.assert_array_equal(pair(by_key, 1), pair(whole, 1))
    for name in ("1", "r2o-000001.tar"):
        by_shard = np.asarray(contact_sheets.contact_sheet(shards, count=2, shards=[name]))
        np.testing.assert_array_equal(pair(by_shard, 0), pair(whole, 3))
        np.testing.assert_array_equal(pair(by_shard, 1), pair(whole, 5))


@pytest.mark.parametrize(
    ("chosen", "complaint"),
    [
        ({"shards": ["3"]}, r"--shard 3: there are r2o-000000\.tar … r2o-000002\.tar, or 0 … 2"),
        ({"shards": ["x.tar"]}, "--shard x.tar"),
        ({"keys": ["7"]}, "--key 7: no such sample; keys are 000000000 … 000000006"),
        ({"keys": ["cat"]}, "--key cat"),
        ({"map_name": "grid"}, "--map grid: further maps of .* are none"),
    ],
)
def test_what_is_not_there_is_named(shards, chosen, complaint):
    with pytest.raises(InputError, match=complaint):
        contact_sheets.contact_sheet(shards, count=3, **chosen)


@pytest.mark.parametrize("there", ["a file", "a link to one", "a folder", "a dangling link"])
def test_what_is_no_png_is_not_replaced_by_a_sheet(there, shards, tmp_path, capsys):
    out, other = tmp_path / "sheet.png", tmp_path / "notes"
    other.write_text("mine")
    if there == "a file":
        out.write_text("mine")
    elif there == "a folder":
        out.mkdir()
    else:
        out.symlink_to("notes" if there == "a link to one" else "nowhere")
    commands = [
        lambda: preview.main(["--shards", str(shards), "--out", str(out)]),
        lambda: make_shards.main(["--images", str(tmp_path / "images"), "--shards", str(shards), "--sheet", str(out)]),
    ]
    for command in commands:
        assert command() == 2
        assert capsys.readouterr().err == f"r2o: error: {out} is there, and is no PNG; choose another name\n"
    assert other.read_text() == "mine"
    assert out.is_dir() or out.is_symlink() or out.read_text() == "mine"


def test_a_former_sheet_is_replaced(shards, tmp_path):
    out = tmp_path / "sheet.png"
    for count in ("1", "5"):
        assert preview.main(["--shards", str(shards), "--out", str(out), "--count", count]) == 0
    assert np.asarray(Image.open(out)).shape[1] > 3 * contact_sheets.TILE


@pytest.mark.parametrize("data", [b"", b'{"key":"000000000","members":{"jpg":[0,1000000000000]}}\n' * 3])
def test_an_index_that_is_not_of_its_shard_is_one_line(shards, tmp_path, capsys, data):
    (shards / "r2o-000000.index").write_bytes(data)
    assert preview.main(["--shards", str(shards), "--out", str(tmp_path / "sheet.png")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"r2o: error: {shards}/r2o-000000.index: not the index of its shard; ")
    assert error.count("\n") == 1
