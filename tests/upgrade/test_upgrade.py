"""What a former release left is read and gone on with: finished shards, an unfinished shard job, a stopped run.

make_fixture.py made the folders beside this file; of_0_1_0 by commit 890e11b, the last before the rooms.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.artifacts.sample import decode_label_map
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import load_settings
from preprocess.config import ShardSettings
from preprocess.shards import make_one, plan, ray_driver
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from preprocess.verify import check_shard
from train.config.data import DataSettings
from train.config.pretrain import PretrainSettings
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import build_training
from train.engine.checkpoint import resume
from train.engine.job import check_job
from train.engine.loop import pretrain
from train.run.folder import RunFolder
from train.run.log import read_log
from train.run.stopping import StopRequest

LEFT = Path(__file__).parent / "of_0_1_0"
SHARDS = LEFT / "shards"
CPU = World(0, 1, torch.device("cpu"))


def settings_of(manifest: Manifest) -> ShardSettings:
    return ShardSettings.model_validate({**manifest.settings, "workers": 1, "max_bad_fraction": 0.5})


@pytest.fixture
def versions_of_then(monkeypatch: pytest.MonkeyPatch) -> Manifest:
    """The shards' manifest; library versions are said to be those of then, as they are part of the fingerprint."""
    manifest = Manifest.read(SHARDS)
    for module in (plan, make_one):
        monkeypatch.setattr(module, "versions_for", lambda settings: manifest.versions)
    return manifest


def test_finished_shards_are_whole_and_read_to_the_bit() -> None:
    manifest = Manifest.read(SHARDS)
    assert (manifest.listed, manifest.stored, manifest.quarantined) == (7, 6, 1)
    assert [entry.source for entry in read_quarantine(SHARDS)] == ["dog/broken.jpg"]
    assert [check_shard(str(SHARDS), manifest, number, True) for number in range(4)] == [[]] * 4
    reader = open_shards(str(SHARDS), manifest, DataSettings())
    number = 0
    for stats in manifest.shards:
        with tarfile.open(SHARDS / stats.name) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for key in sorted({name.partition(".")[0] for name in members}):
            for map_name in (MAIN_MAP, "grid"):
                found = reader.read(number, map_name)
                assert found.key == key
                assert found.members == {n: members[f"{key}.{n}"] for n in ("jpg", "json", map_member(map_name))}
                with Image.open(io.BytesIO(found.members[map_member(map_name)])) as by_pillow:
                    ours = decode_label_map(found.members[map_member(map_name)])
                    assert np.array_equal(ours, np.asarray(by_pillow))
            number += 1
    assert number == manifest.stored


def test_the_same_images_and_settings_are_the_same_job(versions_of_then: Manifest) -> None:
    with list_images(LEFT / "images") as listing:
        plan = Plan(listing, settings_of(versions_of_then))
        assert replace(plan, format_version=1).fingerprint == versions_of_then.fingerprint
        job = ShardJob(SHARDS, plan)
        job.load()
        assert (job.pending(), job.plan.format_version, job.task(1).expected) == ([], 1, versions_of_then.shards[1])


def test_a_shard_that_was_lost_is_made_again_to_the_bit_in_its_own_format(
    versions_of_then: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(SHARDS, tmp_path / "shards"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "r2o-000002.tar").unlink()
    monkeypatch.setattr(
        ray_driver, "_results", lambda job, numbers, _: (make_shard(job.task(n), folder=job.folder) for n in numbers)
    )
    with list_images(LEFT / "images") as listing:
        ray_driver.make_missing(Plan(listing, settings_of(versions_of_then)), str(folder), images="images")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unfinished_job_is_finished_and_what_was_done_stays(versions_of_then: Manifest, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(LEFT / "unfinished", tmp_path / "shards"))
    done = folder / "r2o-000000.tar"
    before = (done.stat().st_ino, done.stat().st_mtime_ns, done.read_bytes())
    with list_images(LEFT / "images") as listing:
        job = ShardJob(folder, Plan(listing, settings_of(versions_of_then)))
        job.load()
        assert job.pending() == [1, 2, 3]  # a killed driver had noted the first alone
        with job.lock():
            job.begin()
            for number in job.pending():
                job.record(make_shard(job.plan.task(number), folder=job.folder))
            manifest = job.finish()
    assert (done.stat().st_ino, done.stat().st_mtime_ns, done.read_bytes()) == before
    assert manifest.shards[0] == versions_of_then.shards[0]
    assert [s.samples for s in manifest.shards] == [s.samples for s in versions_of_then.shards]
    assert manifest.quarantine_sha256 == versions_of_then.quarantine_sha256
    assert manifest.fingerprint == versions_of_then.fingerprint
    assert not (folder / ".job").exists()


@pytest.mark.parametrize("maps", [{"": 60}, {"": 60, "grid": 30, "another": 1}])
def test_a_note_without_checksum_that_knows_other_maps_is_one_line(
    versions_of_then: Manifest, tmp_path: Path, maps: dict[str, int]
) -> None:
    folder = Path(shutil.copytree(LEFT / "unfinished", tmp_path / "shards"))
    note = folder / ".job" / "r2o-000000.tar.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "max_superpixels": maps}))
    with list_images(LEFT / "images") as listing:
        job = ShardJob(folder, Plan(listing, settings_of(versions_of_then)))
        with pytest.raises(InputError, match=r"r2o-000000\.tar\.json: damaged; remove it and run the same command"):
            job.load()


def state_of(form: Any, generator: torch.Generator) -> Any:
    """The nested value that a form describes, with small random numbers where tensors were."""
    if isinstance(form, list):
        return [state_of(one, generator) for one in form]
    if not isinstance(form, dict):
        return form
    if list(form) == ["tensor"]:
        kind, *shape = form["tensor"].split(" ")
        sizes, dtype = [int(size) for size in shape], getattr(torch, kind)
        return torch.rand(sizes, generator=generator).mul_(0.1).add_(0.01).to(dtype)
    return {int(k[1:]) if k.startswith("#") else k: state_of(v, generator) for k, v in form.items()}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The stopped run, its checkpoint filled with numbers."""
    run = Path(shutil.copytree(LEFT / "run", tmp_path / "run"))
    described = json.loads((run / "checkpoint.json").read_bytes())
    (run / "checkpoint.json").unlink()
    (run / "checkpoints").mkdir()
    state = state_of(described["state"], torch.Generator().manual_seed(0))
    torch.save(state, run / "checkpoints" / described["name"])
    return run


def test_a_checkpoint_is_loaded_into_the_networks_of_today(stopped: Path) -> None:
    settings, manifest = load_settings(PretrainSettings, "pretrain", stopped / "config.yaml"), Manifest.read(SHARDS)
    job = check_job(settings, shards=str(SHARDS), run=stopped, num_ranks=1, node_ranks=range(1))
    training = build_training(settings, job.plan, CPU, max_superpixels=manifest.max_superpixels)
    fingerprint = RunFolder(stopped, settings, manifest).fingerprint
    saved = torch.load(stopped / "checkpoints" / "step-00000003.pt", weights_only=True)
    assert saved["fingerprint"] == json.loads((stopped / "run.json").read_bytes())["fingerprint"] == fingerprint
    assert resume(stopped, training, fingerprint=fingerprint) == saved["step"] == 3
    loaded = training.model.state_dict()
    assert loaded.keys() == saved["model"].keys()
    assert all(torch.equal(loaded[name], value) for name, value in saved["model"].items())
    momenta = training.optimizer.state_dict()["state"]
    assert momenta.keys() == saved["optimizer"]["state"].keys()
    for number, of_parameter in saved["optimizer"]["state"].items():
        assert torch.equal(momenta[number]["momentum_buffer"], of_parameter["momentum_buffer"])


@pytest.mark.processes  # run.json asks git for the commit
def test_a_stopped_run_goes_on_to_its_end(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(PretrainSettings, "pretrain", stopped / "config.yaml")
    former = (stopped / "log.jsonl").read_bytes()
    job = check_job(settings, shards=str(SHARDS), run=stopped, num_ranks=1, node_ranks=range(1))
    assert pretrain(job, CPU, StopRequest()) == 0
    assert "going on after step 3 (epoch 3, 0 steps in)" in capsys.readouterr().err
    assert (stopped / "log.jsonl").read_bytes().startswith(former)
    assert [line["step"] for line in read_log(stopped)] == list(range(8))
    assert np.isfinite([line["loss"] for line in read_log(stopped)]).all()
    record = json.loads((stopped / "run.json").read_bytes())
    assert [start["step"] for start in record["starts"]] == [0, 3]
    assert (stopped / "backbone.pt").exists()
