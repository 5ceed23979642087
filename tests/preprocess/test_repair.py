"""Damaged shards made again: those, no other, and nothing lost on the way."""

from __future__ import annotations

import json

import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.exit_codes import EXIT_DAMAGED
from preprocess import verify


@pytest.mark.processes
def test_repair_makes_the_damaged_shards_again_and_no_other(shards, made, images, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    (shards / "r2o-000001.tar").write_bytes(b"")
    (shards / "r2o-000002.index").write_bytes(b"{")
    assert verify.main(["--shards", str(shards), "--workers", "1"]) == EXIT_DAMAGED
    assert "2 of 3 shards, 11 samples damaged" in capsys.readouterr().err
    assert verify.main(["--shards", str(shards), "--repair", "--images", str(images), "--workers", "1"]) == 0
    assert "2 shards made again; whole" in capsys.readouterr().out
    for path in made.iterdir():
        assert (shards / path.name).read_bytes() == path.read_bytes(), path.name
    assert (shards / "r2o-000000.tar").stat().st_mtime_ns == before["r2o-000000.tar"]
    assert sorted(p.name for p in shards.iterdir()) == sorted(before)


@pytest.mark.processes
def test_repair_from_other_images_is_refused(shards, make_folder, tmp_path, capsys):
    (shards / "r2o-000001.tar").unlink()
    other = make_folder(tmp_path / "other", 12)
    assert verify.main(["--shards", str(shards), "--repair", "--images", str(other), "--workers", "1"]) == 2
    assert "the list of images" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.parametrize("wrong", ["other images", "no images", "an empty folder"])
def test_a_repair_that_is_refused_removes_nothing(shards, make_folder, tmp_path, capsys, wrong):
    damaged = shards / "r2o-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-512] + b"x" * 512)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    source = tmp_path / "source"
    if wrong == "other images":
        make_folder(source, 12)
    elif wrong == "an empty folder":
        source.mkdir()
    assert verify.main(["--shards", str(shards), "--repair", "--images", str(source), "--workers", "1"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("r2o: error: ")
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == before


def test_repair_needs_the_images(shards):
    with pytest.raises(InputError, match="needs --images"):
        verify._run(verify.argparse.Namespace(repair=True, images=None))


@pytest.mark.parametrize("name", ["../precious", "../precious/thesis.tar", "{precious}", "{precious}/thesis.tar"])
def test_a_name_that_leads_out_of_the_folder_deletes_nothing(shards, images, tmp_path, capsys, name):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tar").write_text("years of work")
    manifest = json.loads((shards / "manifest.json").read_bytes())
    manifest["shards"][0]["name"] = name.format(precious=precious)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for how in ([], ["--repair", "--images", str(images)]):
        assert verify.main(["--shards", str(shards), "--workers", "1", *how]) == 2
        assert "manifest.json is damaged (shards.0.name: " in capsys.readouterr().err
    assert (precious / "thesis.tar").read_text() == "years of work"
