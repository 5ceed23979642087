"""Images that go away, come back or change while shards are made, and between two runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
from preprocess.shards import ray_driver
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.ray_driver import make_missing
from preprocess.sources.list_images import list_images
from preprocess.sources.reader import Reader

SETTINGS = ShardSettings.model_validate(
    {"images_per_shard": 3, "superpixels": {"backend": "grid", "size": 32}, "max_bad_fraction": 1.0}
)
Meanwhile = Callable[[int], object]


@pytest.fixture
def images(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    root = make_folder(tmp_path / "images", 11, classes=("cat", "dog"))
    (root / "cat" / "broken.jpg").write_bytes(b"text")
    return root


@pytest.fixture
def make(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`make shards` without Ray; `meanwhile` is called with the number of each shard before that is made."""
    made: list[int] = []

    def run(name: str = "set", *, meanwhile: Meanwhile = lambda number: None) -> list[int]:
        def results(job: ShardJob, numbers: list[int], environment: object):
            for number in numbers:
                meanwhile(number)
                made.append(number)
                yield make_shard(job.task(number), folder=job.folder)

        monkeypatch.setattr(ray_driver, "_results", results)
        made.clear()
        with list_images(images) as listing:
            make_missing(Plan(listing, SETTINGS), str(tmp_path / name), images=str(images))
        return [*made]

    return run


@pytest.fixture
def image_of(images: Path) -> Callable[..., Path]:
    """An image, by the number of its shard and its place there."""

    def image(number: int, place: int = 0) -> Path:
        with list_images(images) as listing:
            names = [source.name.decode() for source in Plan(listing, SETTINGS).task(number).sources]
        return images / [name for name in names if "broken" not in name][place]

    return image


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reasons(folder: Path) -> dict[str, str]:
    return {entry.source: entry.reason for entry in read_quarantine(folder)}


def with_other_content(path: Path, *, same_time: bool = False) -> None:
    """Put another image of equal size there, as a copy from elsewhere would."""
    before, data = path.stat(), bytearray(path.read_bytes())
    end = data.index(b"\xff\xda") + 60  # inside the entropy-coded pixels
    data[end : end + 2] = bytes(byte ^ 1 for byte in data[end : end + 2])
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if same_time else 10**9)))


def test_an_image_that_comes_back_while_the_job_runs_is_in_the_set(make, image_of, tmp_path, capsys):
    make("undisturbed")
    image, away = image_of(1), tmp_path / "away"
    came_back: list[bool] = []

    def meanwhile(number: int) -> None:
        if number == 1 and not came_back:
            image.rename(away)
        elif number == 3:
            came_back.append(True)
            away.rename(image)

    assert make(meanwhile=meanwhile) == [0, 1, 2, 3, 1]
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")
    assert "1 shards lack images that can be opened again; making those once more" in capsys.readouterr().err


def test_an_image_that_comes_back_later_is_taken_in_by_the_next_run(make, image_of, images, tmp_path, capsys):
    make("undisturbed")
    image, away = image_of(1), tmp_path / "away"
    make(meanwhile=lambda number: image.rename(away) if number == 1 else None)
    name = str(image.relative_to(images))
    assert reasons(tmp_path / "set")[name] == "cannot be read: No such file or directory"
    assert Manifest.read(tmp_path / "set").quarantined == 2
    assert "1 of them could not be opened; the same command tries those again" in capsys.readouterr().out
    away.rename(image)
    assert make() == [1]
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")
    assert make() == []


def test_a_second_try_that_is_killed_goes_on(make, image_of, tmp_path):
    make("undisturbed")
    image, away = image_of(1), tmp_path / "away"
    make(meanwhile=lambda number: image.rename(away) if number == 1 else None)
    away.rename(image)

    def killed(number: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(meanwhile=killed)
    assert not (tmp_path / "set" / "manifest.json").exists()
    assert make() == [1]
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")


def test_what_is_wrong_with_an_image_itself_is_not_tried_again(make, tmp_path):
    make()
    assert list(reasons(tmp_path / "set")) == ["cat/broken.jpg"]
    assert make() == []


@pytest.mark.parametrize("what", ["images", "images/cat"])
def test_a_folder_that_goes_away_stops_the_job_and_nothing_is_lost(make, image_of, images, tmp_path, what):
    make("undisturbed")
    number = next(number for number in (1, 2, 3) if "cat" in str(image_of(number)))

    def unmount(at: int) -> None:
        if at == number:
            (tmp_path / what).rename(tmp_path / "away")

    with pytest.raises(InputError, match=r"gone since its images were listed \(is it mounted\?\)"):
        make(meanwhile=unmount)
    assert not (tmp_path / "set" / "manifest.json").exists()
    (tmp_path / "away").rename(tmp_path / what)
    assert make() == list(range(number, 4))
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")


def test_images_replaced_between_a_kill_and_the_rerun_are_made_again(make, image_of, tmp_path):
    def killed(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(meanwhile=killed)
    with_other_content(image_of(1))
    assert make() == [1, 3]
    make("clean")
    assert files(tmp_path / "set") == files(tmp_path / "clean")


def test_an_image_replaced_while_the_job_runs_stops_it_and_the_rerun_is_clean(make, image_of, tmp_path):
    early, late = image_of(0), image_of(2)

    def replace(number: int) -> None:
        if number == 2:
            with_other_content(early)
            with_other_content(late)

    with pytest.raises(InputError, match=r"changed after it was listed .*run the same command again"):
        make(meanwhile=replace)
    assert not (tmp_path / "set" / "r2o-000002.tar").exists()
    assert make() == [0, 2, 3]
    make("clean")
    assert files(tmp_path / "set") == files(tmp_path / "clean")


def test_touching_an_image_makes_its_shard_again_to_the_same_bytes_and_no_time_enters(make, image_of, tmp_path):
    make("undisturbed")

    def killed(number: int) -> None:
        if number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(meanwhile=killed)
    os.utime(image_of(0))
    assert make() == [0, 3]
    assert files(tmp_path / "set") == files(tmp_path / "undisturbed")


def test_a_lost_shard_of_replaced_images_is_not_made_and_nothing_takes_its_place(make, image_of, tmp_path):
    make()
    with_other_content(image_of(1), same_time=True)
    shard = tmp_path / "set" / "r2o-000001.tar"
    shutil.move(tmp_path / "set" / "r2o-000001.index", tmp_path / "index")
    before = shard.read_bytes()
    with pytest.raises(InputError, match=r"r2o-000001.tar: its images are not those that it was made from"):
        make()
    assert shard.read_bytes() == before
    assert not (tmp_path / "set" / "r2o-000001.index").exists()


def test_a_lost_shard_of_replaced_images_is_not_made_either_while_others_come_back(make, image_of, tmp_path):
    image, away = image_of(1), tmp_path / "away"
    make(meanwhile=lambda number: image.rename(away) if number == 1 else None)
    away.rename(image)
    with_other_content(image_of(2), same_time=True)
    index = (tmp_path / "set" / "r2o-000002.index").rename(tmp_path / "index")
    before = files(tmp_path / "set")
    with pytest.raises(InputError, match=r"r2o-000002.tar: its images are not those that it was made from"):
        make()
    assert {name: data for name, data in files(tmp_path / "set").items() if ".job" not in name} == before
    index.rename(tmp_path / "set" / "r2o-000002.index")
    assert make() == [1]


def test_an_image_that_comes_back_beside_replaced_ones_is_left_out(make, image_of, tmp_path, capsys):
    first, second = image_of(1), image_of(1, 1)
    make(meanwhile=lambda number: first.rename(tmp_path / "away") if number == 1 else None)
    before = files(tmp_path / "set")
    (tmp_path / "away").rename(first)
    whole = second.read_bytes()
    with_other_content(second, same_time=True)
    assert make() == []
    assert files(tmp_path / "set") == before
    told = "was left so: 1 of its others are not those of then; --overwrite makes all again"
    assert capsys.readouterr().err.count(told) == 1
    second.write_bytes(whole)
    assert make() == [1]


def test_an_image_that_comes_back_is_not_taken_in_at_the_cost_of_another(make, image_of, tmp_path, monkeypatch):
    first, second = image_of(1), image_of(1, 1)
    make(meanwhile=lambda number: first.rename(tmp_path / "away") if number == 1 else None)
    before = files(tmp_path / "set")
    (tmp_path / "away").rename(first)
    is_readable = Reader.is_readable
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "is_readable", lambda self, s: not second.match(s.name.decode()) and is_readable(self, s))
        assert make() == []
        assert files(tmp_path / "set") == before
    assert make() == [1]


@pytest.mark.parametrize("name", ["job.json", "r2o-000000.tar.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "other type", "no checksum"])
def test_a_damaged_note_is_one_line(make, tmp_path, name, damage):
    def killed(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(meanwhile=killed)
    path = tmp_path / "set" / ".job" / name
    text = path.read_text()
    members = json.loads(text)
    digits = members["fingerprint"] if name == "job.json" else members["stats"]["sha256"]
    flipped = digits[:5] + ("0" if digits[5] != "0" else "1") + digits[6:]
    damaged = {
        "flip": text.replace(digits, flipped),
        "cut": text[: len(text) // 2],
        "other type": "[1, 2]",
        "no checksum": json.dumps({key: value for key, value in members.items() if key != "checksum"}),
    }[damage]
    path.write_text(damaged)
    with pytest.raises(InputError, match=rf"\.job/{name}: damaged; "):
        make()
    assert path.read_text() == damaged
