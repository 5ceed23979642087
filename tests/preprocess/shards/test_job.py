from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, hidden ones too."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def work(job: ShardJob, *, most: int | None = None, overwrite: bool = False) -> list[int]:
    """What the driver does, without Ray; stops after `most` shards. The numbers of the shards made."""
    job.load(overwrite=overwrite)
    with job.lock():
        job.begin()
        made = job.pending()[:most]
        for number in made:
            job.record(make_shard(job.plan.task(number), folder=job.folder))
        if not job.pending():
            job.finish()
    return made


@pytest.fixture
def images(tmp_path, make_folder):
    root = make_folder(tmp_path / "images", 9, classes=("cat", "dog"))
    (root / "cat" / "broken.jpg").write_bytes(b"text")
    return root


@pytest.fixture
def new_job(images, tmp_path):
    def make(name: str = "shards", **settings: object) -> ShardJob:
        return ShardJob(tmp_path / name, Plan(list_images(images), ShardSettings(images_per_shard=3, **settings)))

    return make


def test_finished_folder_holds_the_contract_and_nothing_else(new_job):
    job = new_job()
    assert work(job) == [0, 1, 2, 3]
    shards = [f"r2o-{n:06d}.{kind}" for n in range(4) for kind in ("tar", "index")]
    found = contents(job.folder.path)
    assert sorted(found) == sorted([*shards, "manifest.json", "quarantine.jsonl"])
    assert sorted(p.name for p in job.folder.path.iterdir()) == sorted(found)
    manifest = Manifest.read(job.folder)
    assert (manifest.listed, manifest.stored, manifest.quarantined, manifest.ignored) == (10, 9, 1, 0)
    assert manifest.classes == ("cat", "dog")
    assert manifest.superpixel_size == 224
    assert manifest.quarantine_sha256 == found["quarantine.jsonl"]
    assert [shard.sha256 for shard in manifest.shards] == [found[shard.name] for shard in manifest.shards]
    assert [shard.index_sha256 for shard in manifest.shards] == [found[shard.index_name] for shard in manifest.shards]
    assert [(e.source, e.reason[:9]) for e in read_quarantine(job.folder)] == [("cat/broken.jpg", "not an im")]


def test_no_time_host_or_place_is_in_it(new_job, tmp_path):
    work(new_job("a"))
    work(new_job("b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert str(tmp_path) not in (tmp_path / "a" / "manifest.json").read_text()


def test_a_stopped_job_goes_on_and_gives_the_same(new_job, tmp_path):
    work(new_job("whole"))
    assert work(new_job("parts"), most=2) == [0, 1]
    (tmp_path / "parts" / ".r2o-000002.tar.x.tmp").write_bytes(b"half")
    (tmp_path / "parts" / "r2o-000001.tar").write_bytes(b"cut")
    assert work(new_job("parts")) == [1, 2, 3]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_finished_means_nothing_pending(new_job):
    work(new_job())
    job = new_job()
    job.load()
    assert job.pending() == []
    assert job.manifest is not None


@pytest.mark.parametrize("missing", ["r2o-000001.tar", "r2o-000002.index"])
def test_only_what_is_missing_is_made_again(new_job, missing):
    work(new_job())
    before = contents(new_job().folder.path)
    (new_job().folder.path / missing).unlink()
    assert work(new_job()) == [int(missing[9])]
    assert contents(new_job().folder.path) == before


def test_a_missing_quarantine_is_made_from_all_shards(new_job):
    work(new_job())
    before = contents(new_job().folder.path)
    (new_job().folder.path / "quarantine.jsonl").unlink()
    assert work(new_job()) == [0, 1, 2, 3]
    assert contents(new_job().folder.path) == before


def test_a_remade_shard_must_be_the_one_of_the_manifest(new_job, images, picture, encoded):
    work(new_job())
    name = new_job().plan.task(0).sources[0].name.decode()
    old = (images / name).read_bytes()
    other = encoded(picture(50, 20, 20), quality=50)
    (images / name).write_bytes(other + bytes(len(old) - len(other)))
    (new_job().folder.path / "r2o-000000.tar").unlink()
    with pytest.raises(InputError, match="its images have changed"):
        work(new_job())


@pytest.mark.parametrize("most", [1, None])
def test_other_settings_are_refused_by_name(new_job, most):
    work(new_job(), most=most)
    with pytest.raises(InputError, match=r"seed: 0 → 5.*--overwrite"):
        work(new_job(seed=5))
    with pytest.raises(InputError, match=r"superpixels\.compactness: 10\.0 → 20\.0"):
        work(new_job(superpixels={"compactness": 20.0}))


def test_another_list_of_images_is_refused(new_job, images):
    work(new_job())
    (images / "dog" / "new.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="the list of images: 10 → 11"):
        new_job().load()
    (images / "dog" / "new.jpg").unlink()
    (images / "cat" / "broken.jpg").write_bytes(b"longer text")
    with pytest.raises(InputError, match="as many, but other names, sizes or places"):
        new_job().load()


def test_overwrite_makes_them_again(new_job, tmp_path):
    work(new_job("fresh", seed=5))
    work(new_job("shards", prefix="old"))
    work(new_job("shards", seed=5), overwrite=True)
    assert contents(tmp_path / "shards") == contents(tmp_path / "fresh")


def test_a_damaged_manifest_says_how_to_go_on(new_job):
    work(new_job())
    (new_job().folder.path / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="--overwrite"):
        new_job().load()
    assert work(new_job(), overwrite=True) == [0, 1, 2, 3]


def test_another_format_version_is_refused(new_job):
    work(new_job())
    path = new_job().folder.path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        new_job().load()


def test_a_folder_of_something_else_is_refused(new_job, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds 'thesis.txt' but no shards"):
            new_job().load(overwrite=overwrite)


def test_a_file_for_a_folder_is_refused(new_job, tmp_path):
    (tmp_path / "shards").write_text("")
    with pytest.raises(InputError, match="SHARDS must be a folder"):
        new_job().load()


def test_two_jobs_at_once_are_refused(new_job):
    first, second = new_job(), new_job()
    with first.lock(), pytest.raises(InputError, match="another job is making these shards"), second.lock():
        pass
    with second.lock():
        pass


@pytest.mark.parametrize("change", ["another prefix", "a later number", "one too few", "another order"])
def test_a_manifest_that_names_other_shards_than_its_images_make_is_refused(new_job, change):
    job = new_job()
    work(job)
    manifest = Manifest.read(job.folder)
    first, second, *others = manifest.shards
    shards = {
        "another prefix": (first.model_copy(update={"name": "thesis-000000.tar"}), second, *others),
        "a later number": (first.model_copy(update={"name": "r2o-000099.tar"}), second, *others),
        "one too few": (first, second, *others[:-1]),
        "another order": (second, first, *others),
    }[change]
    stored = sum(shard.samples for shard in shards)
    changed = manifest.model_copy(update={"shards": shards, "stored": stored})
    (job.folder.path / "manifest.json").write_bytes(changed.encode())
    before = contents(job.folder.path)
    with pytest.raises(InputError, match=r"manifest\.json is damaged: it names other shards; "):
        new_job().load()
    assert contents(job.folder.path) == before
