"""A run that has begun never begins again by itself, whatever becomes of its checkpoints; and no stop costs it one."""

import json
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.foundation.errors import exit_code_of
from tests.train.conftest import SMALL_RUN
from train import pretrain
from train.engine.checkpoint import Checkpoints, checkpoints, read_checkpoint
from train.models import backbone
from train.run.folder import RunFolder
from train.run.log import read_log

pytestmark = [pytest.mark.usefixtures("shallow"), pytest.mark.processes]  # run.json asks git for the commit
SETTINGS = {
    **SMALL_RUN,
    "optim": {"warmup_epochs": 0.5},
    "run": {"log_every_steps": 1, "panel_images": 1, "probe_every_epochs": None, "checkpoint_every_steps": 2},
}


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """ResNets with one block a stage, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patched:
        for name, (block, _) in list(backbone._ARCHITECTURES.items()):
            patched.setitem(backbone._ARCHITECTURES, name, (block, [1, 1, 1, 1]))
        yield


def arguments_of(shards: Path, folder: Path) -> list[str]:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"pretrain": SETTINGS}))
    return [f"--shards={shards}", f"--run={folder / 'run'}", f"--config={config}"]


@pytest.fixture
def arguments(shards: Path, tmp_path: Path) -> list[str]:
    return arguments_of(shards, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(shallow: None, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    assert start(arguments_of(shards, folder)) == 0
    return folder / "run"


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished run, which `arguments` go on with."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def start(arguments: list[str], *more: str) -> int:
    return exit_code_of(lambda: pretrain.main([*arguments, *more]))


class Killed(BaseException):
    pass


def test_step_0_is_on_disk_before_the_record_says_that_the_run_has_begun(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> str:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", kill)
        with pytest.raises(Killed):
            start(arguments)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [".lock"]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "note_start", kill)
        with pytest.raises(Killed):
            start(arguments)
    (first,) = checkpoints(tmp_path / "run")
    assert first.name == "step-00000000.pt"
    state = read_checkpoint(first)
    assert (state["step"], state["optimizer"]["state"]) == (0, {})
    assert start(arguments) == 0
    assert [record["step"] for record in read_log(tmp_path / "run")] == [0, 1, 2, 3]
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000002.pt", "step-00000004.pt"]


@pytest.mark.parametrize("loss", ["deleted", "damaged", "the folder is gone", "no run.json"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_without_a_whole_checkpoint_stops_and_says_what_to_do(
    finished: Path, arguments: list[str], loss: str, is_finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    log = (finished / "log.jsonl").read_bytes()
    kept = shutil.copy2(checkpoints(finished)[-1], finished.parent / "kept.pt")
    if not is_finished:
        (finished / "backbone.pt").unlink()
    for path in checkpoints(finished):
        path.write_bytes(path.read_bytes()[:-100]) if loss == "damaged" else path.unlink()
    if loss == "the folder is gone":
        (finished / "checkpoints").rmdir()
    if loss == "no run.json":
        (finished / "run.json").unlink()
    capsys.readouterr()
    for _ in range(3):
        assert start(arguments) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        aside = " (damaged ones set aside: 2)" if loss == "damaged" else ""
        assert line == (
            f"r2o: error: {finished} has begun but holds no whole checkpoint{aside}; put one back as "
            f"checkpoints/step-….pt, choose another RUN, or remove {finished} to begin again"
        )
        assert (finished / "log.jsonl").read_bytes() == log
        assert (finished / "backbone.pt").exists() == is_finished
    (finished / "checkpoints").mkdir(exist_ok=True)
    shutil.copy2(kept, finished / "checkpoints" / "step-00000004.pt")
    assert start(arguments) == 0
    assert (finished / "log.jsonl").read_bytes().startswith(log)


def test_a_log_without_a_whole_line_also_says_that_a_run_has_begun(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "log.jsonl"
    log.write_bytes(zeros := bytes(500))  # as a power cut leaves it
    assert start(arguments) == 2
    assert f"{log.parent} has begun but holds no whole checkpoint" in capsys.readouterr().err
    assert log.read_bytes() == zeros
    log.write_bytes(b"")
    assert start(arguments) == 0


def test_a_stop_while_a_checkpoint_is_read_sets_nothing_aside(
    finished: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the middle of the comparison of checksums, as a preemption may send it."""
    names, compare = [p.name for p in checkpoints(finished)], zipfile.ZipFile.testzip

    def stopped(archive: zipfile.ZipFile) -> str | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return compare(archive)

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "testzip", stopped)
        assert start(arguments) == 75
    assert "SIGTERM: stopped before the first step; the same command begins again" in capsys.readouterr().err
    assert [p.name for p in sorted((finished / "checkpoints").iterdir())] == names
    assert start(arguments) == 0


def test_a_step_beyond_the_end_is_refused(
    finished: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_checkpoint(newest := checkpoints(finished)[-1])
    torch.save({**state, "step": 10**9}, newest.with_name("step-1000000000.pt"))
    assert start(arguments) == 2
    assert "is at step 1000000000, but has 4" in capsys.readouterr().err


def test_milestones_do_not_hold_step_0(arguments: list[str], tmp_path: Path) -> None:
    assert start(arguments, "--set=pretrain.run.milestone_every_epochs=1", "--set=pretrain.run.keep_checkpoints=1") == 0
    names = [path.name for path in checkpoints(tmp_path / "run")]
    assert names == ["step-00000002.pt", "step-00000004-milestone.pt"]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["starts"][0]["step"] == 0
