"""Whatever --overwrite finds: it removes shards of the set, all of them, and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
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


@pytest.fixture
def images(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    return make_folder(tmp_path / "images", 7, classes=("cat", "dog"))


def make(images: Path | str, shards: Path | str, *, overwrite: bool = False, **settings: object):
    chosen = ShardSettings.model_validate({**QUICK, **settings})
    with list_images(str(images), chosen.source) as listing:
        return make_missing(Plan(listing, chosen), str(shards), images=str(images), overwrite=overwrite).manifest


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed(monkeypatch: pytest.MonkeyPatch, method: str, images: Path, shards: Path, **given: object) -> None:
    """A run that ends as soon as the job would do this."""
    with monkeypatch.context() as patch:
        patch.setattr(ShardJob, method, lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(images, shards, **given)


def test_an_overwrite_that_was_interrupted_twice_leaves_no_shard_of_the_first_set(tmp_path, images, monkeypatch):
    make(images, tmp_path / "set", prefix="first")
    with monkeypatch.context() as patch:

        def manifest_alone(self: ShardJob) -> None:
            self.folder.remove("manifest.json")
            raise KeyboardInterrupt

        patch.setattr(ShardJob, "_remove_shards", manifest_alone)
        with pytest.raises(KeyboardInterrupt):
            make(images, tmp_path / "set", overwrite=True, prefix="second")
    killed(monkeypatch, "_remove_shards", images, tmp_path / "set", overwrite=True, prefix="third")
    make(images, tmp_path / "set", overwrite=True, prefix="fourth")
    make(images, tmp_path / "clean", prefix="fourth")
    assert files(tmp_path / "set") == files(tmp_path / "clean")


@pytest.mark.parametrize("damage", ["cut", "of another set"])
def test_a_damaged_manifest_beside_a_job_that_was_at_work_may_be_overwritten(tmp_path, images, monkeypatch, damage):
    make(images, tmp_path / "set")
    make(images, tmp_path / "other", seed=1)
    whole = files(tmp_path / "set")
    (tmp_path / "set" / "r2o-000000.tar").unlink()
    killed(monkeypatch, "finish", images, tmp_path / "set")
    manifest = tmp_path / "set" / "manifest.json"
    other = (tmp_path / "other" / "manifest.json").read_bytes()
    manifest.write_bytes(other if damage == "of another set" else manifest.read_bytes()[:90])
    with pytest.raises(InputError, match="--overwrite"):
        make(images, tmp_path / "set")
    make(images, tmp_path / "set", overwrite=True)
    assert files(tmp_path / "set") == whole


@pytest.mark.parametrize("beside", ["manifest.json", ".job/lock"])
def test_backups_beside_what_is_no_set_of_ours_are_no_shards(tmp_path, images, beside):
    app = tmp_path / "app"
    (app / beside).parent.mkdir(parents=True)
    (app / beside).write_text("not JSON")
    (app / "backup-20240101.tar").write_text("precious")
    before = files(app)
    for overwrite in (False, True):
        with pytest.raises(InputError):
            make(images, app, overwrite=overwrite)
        assert files(app) == before


@pytest.mark.parametrize("is_set", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_job_folder_that_holds_something_else_is_refused(tmp_path, images, is_set, overwrite):
    if is_set:
        make(images, tmp_path / "set")
    (tmp_path / "set" / ".job").mkdir(parents=True)
    (tmp_path / "set" / ".job" / "thesis.tex").write_text("years of work")
    before = files(tmp_path / "set")
    with pytest.raises(InputError, match=r"\.job: holds 'thesis\.tex', which no job of shards left; move it away"):
        make(images, tmp_path / "set", overwrite=overwrite)
    assert files(tmp_path / "set") == before


def test_only_temporary_files_of_ours_are_removed(tmp_path, images):
    make(images, tmp_path / "set")
    whole = files(tmp_path / "set")
    (tmp_path / "set" / ".drafts.tmp").mkdir()
    mine = {".drafts.tmp/thesis.tex", ".notes.txt.a1b2c3d4.tmp", ".notes.tmp"}
    for name in mine:
        (tmp_path / "set" / name).write_text("mine")
    for name in (".r2o-000001.tar.a1b2c3d4.tmp", ".manifest.json.a1b2c3d4.tmp", ".r2o-000000.index._x.tmp"):
        (tmp_path / "set" / name).write_text("half")
    (tmp_path / "set" / "r2o-000001.tar").unlink()
    make(images, tmp_path / "set")
    assert files(tmp_path / "set") == whole | dict.fromkeys(mine, b"mine")


@pytest.mark.parametrize("overwrite", [True, False])
def test_archives_that_are_links_into_shards_are_not_overwritten(tmp_path, images, overwrite):
    make(images, tmp_path / "set")
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "set").glob("*.tar"):
        (tmp_path / "in" / path.name).symlink_to(path)
    before = files(tmp_path / "set")
    with pytest.raises(InputError, match=r"in/r2o-000000\.tar leads into it; choose a SHARDS folder apart"):
        make(tmp_path / "in", tmp_path / "set", overwrite=overwrite)
    assert files(tmp_path / "set") == before
    assert make(tmp_path / "in", tmp_path / "others").stored == 7


@pytest.mark.parametrize("of_images", ["{}", "local://{}", "file://{}", "{}/../set/r2o-*.tar"])
@pytest.mark.parametrize("of_shards", ["{}", "local://{}", "{}/"])
def test_one_folder_under_two_names_is_one(tmp_path, images, of_images, of_shards):
    make(images, tmp_path / "set")
    before = files(tmp_path / "set")
    for overwrite in (True, False):
        with pytest.raises(InputError, match="choose a SHARDS folder apart from IMAGES"):
            make(of_images.format(tmp_path / "set"), of_shards.format(tmp_path / "set"), overwrite=overwrite)
    assert files(tmp_path / "set") == before


def test_a_folder_behind_two_urls_is_one(tmp_path, images):
    make(images, "memory://bucket/set")
    try:
        with pytest.raises(InputError, match="choose a SHARDS folder apart from IMAGES"):
            make("memory://bucket/set", "memory:///bucket//set", overwrite=True)
        assert make("memory://bucket/set", tmp_path / "bucket" / "set").stored == 7
    finally:
        from fsspec.implementations.memory import MemoryFileSystem

        MemoryFileSystem.store.clear()


@pytest.mark.parametrize("wrong", ["one less", "another prefix"])
def test_a_manifest_that_names_other_shards_is_one_line(tmp_path, images, wrong):
    make(images, tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    members = json.loads(path.read_bytes())
    if wrong == "one less":
        members["stored"] -= members["shards"].pop()["samples"]
    else:
        members["shards"][1]["name"] = "zzz-000001.tar"
    path.write_text(json.dumps(sealed(members)))
    with pytest.raises(InputError, match=r"manifest\.json is damaged: it names other shards; .*--overwrite"):
        make(images, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / ".job", ignore_errors=True)
    assert make(images, tmp_path / "set", overwrite=True).stored == 7
