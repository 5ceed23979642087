"""What must not be lost: the images, and whatever in SHARDS is no shard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings, SourceSettings
from preprocess.shards import ray_driver
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.ray_driver import make_missing
from preprocess.sources.list_images import list_images

QUICK = {"images_per_shard": 3, "superpixels": {"backend": "grid", "size": 32}, "max_bad_fraction": 1.0}


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(
        ray_driver, "_results", lambda job, numbers, _: (make_shard(job.task(n), folder=job.folder) for n in numbers)
    )


def make(images: Path | str, shards: Path | str, *, overwrite: bool = False, source: dict | None = None, **settings):
    chosen = ShardSettings.model_validate({**QUICK, **settings, "source": source or {}})
    with list_images(str(images), chosen.source) as listing:
        return make_missing(Plan(listing, chosen), str(shards), images=str(images), overwrite=overwrite).manifest


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def images(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    return make_folder(tmp_path / "data" / "images", 7, classes=("cat", "dog"))


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("shards", "complaint"),
    [
        ("data/images", "the images of .* lie in it"),
        ("data", "the images of .* lie in it"),
        ("data/images/shards", "lies among the images of"),
        ("data/images/cat/.hidden/shards", "lies among the images of"),
        ("way/shards", "lies among the images of"),
        ("way", "the images of .* lie in it"),
        ("file://{}/data/images/../images", "the images of .* lie in it"),
    ],
)
def test_images_and_shards_that_do_not_lie_apart_are_refused(tmp_path, images, shards, complaint, overwrite):
    (tmp_path / "way").symlink_to(images)
    (images / "manifest.json").write_text("{}")
    before = files(tmp_path)
    place = shards.format(tmp_path) if "://" in shards else tmp_path / shards
    with pytest.raises(InputError, match=f"{complaint}.*choose a SHARDS folder apart from IMAGES"):
        make(images, place, overwrite=overwrite)
    assert files(tmp_path) == before


def test_a_set_is_no_place_for_the_shards_that_are_made_of_it(tmp_path, images):
    make(images, tmp_path / "set")
    before = files(tmp_path / "set")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"the images of .* lie in it"):
            make(tmp_path / "set", tmp_path / "set", overwrite=overwrite)
    assert files(tmp_path / "set") == before
    assert make(tmp_path / "set", tmp_path / "set" / "again").stored == 7  # tars are looked for in one folder alone


def test_a_list_may_stand_above_shards_that_it_does_not_name_images_of(tmp_path, images):
    names = sorted(path.relative_to(tmp_path / "data") for path in images.rglob("*.jpg"))
    (tmp_path / "data" / "list.txt").write_text("\n".join(map(str, names)))
    assert make(tmp_path / "data" / "list.txt", tmp_path / "data" / "shards").stored == 7
    with pytest.raises(InputError, match=r"the list list.txt names images in it"):
        make(tmp_path / "data" / "list.txt", tmp_path / "data" / "images" / "dog", overwrite=True)
    assert len(list(images.rglob("*.jpg"))) == 7


def test_the_split_of_a_coco_folder_is_all_that_shards_must_lie_apart_from(tmp_path, images):
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    shutil.copytree(images / "cat", coco / "train2017")
    source = SourceSettings(format="coco").model_dump()
    assert make(coco, coco / "shards", source=source).stored == 4
    with pytest.raises(InputError, match=r"lies among the images of .*train2017"):
        make(coco, coco / "train2017" / "shards", source=source)


def test_behind_a_url_they_must_lie_apart_too(images):
    fs = fsspec.filesystem("memory")
    for path in images.rglob("*.jpg"):
        fs.pipe(f"/bucket/images/{path.name}", path.read_bytes())
    try:
        for shards in ("memory://bucket/images", "memory://bucket", "memory://bucket/images/x"):
            with pytest.raises(InputError, match="choose a SHARDS folder apart"):
                make("memory://bucket/images/", shards)
        assert make("memory://bucket/images", "memory://bucket/images-as-shards").stored == 7
    finally:
        fs.store.clear()
        fs.pseudo_dirs.clear()


@pytest.mark.parametrize("manifest", ['{"name": "my web app"}', "[]", '"x"', "not JSON", '{"format_version": 1}'])
def test_another_programs_folder_is_not_taken_for_shards(tmp_path, images, manifest):
    app = tmp_path / "app"
    app.mkdir()
    for name, text in (("manifest.json", manifest), ("backup-20240101.tar", "precious"), ("index.html", "<html>")):
        (app / name).write_text(text)
    before = files(app)
    for overwrite in (False, True):
        with pytest.raises(InputError):
            make(images, app, overwrite=overwrite)
        assert files(app) == before


def test_a_damaged_manifest_beside_nothing_but_shards_may_be_overwritten(tmp_path, images):
    make(images, tmp_path / "set")
    whole = files(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_bytes(whole["manifest.json"][:40])
    make(images, tmp_path / "set", overwrite=True)
    assert files(tmp_path / "set") == whole
    (tmp_path / "set" / "manifest.json").write_bytes(whole["manifest.json"][:40])
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds 'thesis.tex' but no shards"):
        make(images, tmp_path / "set", overwrite=True)
    assert files(tmp_path / "set").keys() == whole.keys() | {"thesis.tex"}


@pytest.mark.parametrize("version", [1, 99])
def test_a_set_of_another_format_may_be_overwritten(tmp_path, images, version):
    make(images, tmp_path / "set", prefix="old")
    path = tmp_path / "set" / "manifest.json"
    members = {**json.loads(path.read_bytes()), "format_version": version}
    path.write_text(json.dumps(members))
    make(images, tmp_path / "set", overwrite=True)
    assert sorted(files(tmp_path / "set"))[:1] == ["manifest.json"]
    assert not list((tmp_path / "set").glob("old-*"))
    assert Manifest.read(tmp_path / "set").stored == 7


def test_overwriting_removes_the_shards_of_the_set_and_nothing_beside_them(tmp_path, images):
    make(images, tmp_path / "set", images_per_shard=1)
    for name in ("photos-000001.tar", "photos-000001.index", "README.md", "r2o-1.tar", "r2o-000001.txt"):
        (tmp_path / "set" / name).write_text("mine")
    made = make(images, tmp_path / "set", overwrite=True)
    found = files(tmp_path / "set")
    mine = {name for name, data in found.items() if data == b"mine"}
    assert mine == {"photos-000001.tar", "photos-000001.index", "README.md", "r2o-1.tar", "r2o-000001.txt"}
    ours = {name for stats in made.shards for name in (stats.name, stats.index_name)}
    assert found.keys() == mine | ours | {"manifest.json", "quarantine.jsonl"}


def job(images: Path, shards: Path, **settings) -> ShardJob:
    return ShardJob(shards, Plan(list_images(images), ShardSettings.model_validate({**QUICK, **settings})))


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_interrupted_overwrite_goes_on_where_it_was(tmp_path, images, overwrite):
    make(images, tmp_path / "set", images_per_shard=1)
    first = job(images, tmp_path / "set")
    first.load(overwrite=True)
    with first.lock():
        first.begin()
        assert first.pending() == [0, 1, 2]
        first.record(make_shard(first.task(0), folder=first.folder))
    done = (tmp_path / "set" / "r2o-000000.tar").stat().st_ino
    second = job(images, tmp_path / "set")
    second.load(overwrite=overwrite)
    assert second.pending() == [1, 2]
    make(images, tmp_path / "set", overwrite=overwrite)
    assert (tmp_path / "set" / "r2o-000000.tar").stat().st_ino == done
    make(images, tmp_path / "clean")
    assert files(tmp_path / "set") == files(tmp_path / "clean")


def test_an_overwrite_that_died_while_it_removed_is_finished_by_the_next_run(tmp_path, images, monkeypatch):
    make(images, tmp_path / "set", images_per_shard=1)
    first = job(images, tmp_path / "set")
    first.load(overwrite=True)
    monkeypatch.setattr(ShardJob, "_remove_shards", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), first.lock():
        first.begin()
    monkeypatch.undo()
    with pytest.raises(InputError, match="images_per_shard: 3 → 1"):
        job(images, tmp_path / "set", images_per_shard=1).load()  # the former settings
    after = job(images, tmp_path / "set")
    after.load()
    with after.lock():
        after.begin()
        assert not [name for name in after.folder.names() if name.startswith("r2o-")]
        assert after.pending() == [0, 1, 2]


def test_a_finished_set_is_made_anew_by_another_overwrite(tmp_path, images):
    make(images, tmp_path / "set")
    before = (tmp_path / "set" / "r2o-000000.tar").stat().st_mtime_ns
    whole = files(tmp_path / "set")
    make(images, tmp_path / "set", overwrite=True)
    assert (tmp_path / "set" / "r2o-000000.tar").stat().st_mtime_ns > before
    assert files(tmp_path / "set") == whole


@pytest.mark.parametrize("where", [".job", ".job/job.json", ".job/lock", ".job/r2o-000000.tar.json"])
def test_no_link_below_shards_is_followed(tmp_path, images, where):
    begun = job(images, tmp_path / "set")
    begun.load()
    with begun.lock():
        begun.begin()
        begun.record(make_shard(begun.task(0), folder=begun.folder))
    victim = (tmp_path / "set" / where).rename(tmp_path / "victim")
    (tmp_path / "set" / where).symlink_to(victim)
    before = files(victim) if victim.is_dir() else victim.read_bytes()
    with pytest.raises(InputError, match="a link, and r2o follows none there"):
        make(images, tmp_path / "set")
    assert (files(victim) if victim.is_dir() else victim.read_bytes()) == before


def test_a_shard_that_is_a_link_is_made_again_and_the_victim_stays(tmp_path, images):
    make(images, tmp_path / "set")
    whole = files(tmp_path / "set")
    (tmp_path / "set" / "r2o-000001.tar").rename(tmp_path / "victim")
    (tmp_path / "set" / "r2o-000001.tar").symlink_to(tmp_path / "victim")
    make(images, tmp_path / "set")
    assert not (tmp_path / "set" / "r2o-000001.tar").is_symlink()
    assert files(tmp_path / "set") == whole
    assert (tmp_path / "victim").read_bytes() == whole["r2o-000001.tar"]
