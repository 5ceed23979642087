"""Which files are found, and that what is passed over is counted."""

import os
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from pipeline.report import search
from pipeline.report.search import find_results


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_every_file_is_found_once_in_order(tmp_path: Path) -> None:
    b, a, single = (touch(tmp_path / name / "results.json") for name in ("runs/b/eval-voc", "runs/a/x/y", "z"))
    touch(tmp_path / "runs" / "a" / "other.json")
    found = find_results([single, tmp_path / "runs", tmp_path, single.parent])
    assert found.files == [single, a, b]
    assert (found.links, found.deeper, found.unreadable) == ([], [], [])


@pytest.mark.parametrize("name", ["features", "checkpoints", "panels", "tensorboard", ".hidden", "__pycache__"])
def test_folders_without_results_are_not_entered(tmp_path: Path, name: str) -> None:
    touch(tmp_path / name / "results.json")
    kept = touch(tmp_path / f"{name}x".lstrip(".") / "results.json")
    assert find_results([tmp_path]).files == [kept]


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    there = touch(tmp_path / "there" / "results.json")
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "linked").symlink_to(there.parent)
    (runs / "round").symlink_to(runs)
    (runs / "results.json").symlink_to(there)
    (runs / "notes").symlink_to(there)  # no results by its name
    found = find_results([runs])
    assert found.files == []
    assert sorted(path.name for path in found.links) == ["linked", "results.json", "round"]
    assert find_results([runs / "linked"]).files == [runs / "linked" / "results.json"]  # the user named it


def test_depth_is_bounded_and_what_is_deeper_is_counted(tmp_path: Path) -> None:
    last = tmp_path.joinpath(*["f"] * search.MOST_LEVELS)
    kept = touch(last / "results.json")
    touch(last / "f" / "results.json")
    found = find_results([tmp_path])
    assert found.files == [kept]
    assert found.deeper == [last / "f"]


def test_number_of_entries_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        touch(tmp_path / "images" / f"{number}.jpg")
    monkeypatch.setattr(search, "MOST_ENTRIES", 4)  # the folder and three images
    assert find_results([tmp_path]).files == []
    monkeypatch.setattr(search, "MOST_ENTRIES", 3)
    with pytest.raises(InputError, match="more than 3 files below it; name the folders of the evaluations"):
        find_results([tmp_path])


def test_places_that_are_wrong_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing does not exist"):
        find_results([tmp_path, tmp_path / "nothing"])
    with pytest.raises(InputError, match=r"backbone\.pt: neither a folder nor a results\.json"):
        find_results([touch(tmp_path / "backbone.pt")])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: neither"):
        find_results([tmp_path / "pipe"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    assert find_results([tmp_path]).unreadable == [tmp_path / "closed"]
