"""Scenes by several processes: the same files, the same errors, and nothing that outlives who asked for them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from preprocess import scenes
from preprocess.config import SceneSettings
from preprocess.demo.make_scenes import make_scenes
from preprocess.demo.processes import processes_for, write_scenes
from preprocess.demo.scene_files import PlannedScene, planned_scenes

SMALL = SceneSettings(pretrain_images=17, train_images=3, val_images=2, size=48)
LARGE = ["--set=scenes.pretrain_images=2000", "--set=scenes.size=512"]  # minutes of work


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(out: Path) -> subprocess.Popen[str]:
    """The command, with two processes whatever the cores, once both are at work."""
    code = (
        "import os, sys; from preprocess import scenes; from pipeline.foundation.errors import exit_code_of;"
        "os.sched_getaffinity = lambda pid: {0, 1}; sys.exit(scenes.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, f"--out={out}", *LARGE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    while process.poll() is None and len(list(out.glob(".making/images/*/*.jpg"))) < 2:
        time.sleep(0.02)
    return process


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.processes
@pytest.mark.long
def test_the_files_do_not_depend_on_how_many_processes_make_them(tmp_path: Path) -> None:
    for count in (1, 2, 3):
        assert make_scenes(tmp_path / str(count), SMALL, processes=count)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) == 17 + 2 * 5 + 3 + 2  # photos, photos with masks, lists, two texts


@pytest.mark.processes
@pytest.mark.parametrize("count", [1, 2])
def test_every_scene_is_counted_once(tmp_path: Path, count: int) -> None:
    for name in ("images", "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"):
        (tmp_path / name).mkdir(parents=True)
    for name in SMALL.shapes:
        (tmp_path / "images" / name).mkdir()
    told: list[int] = []
    write_scenes(tmp_path, SMALL, planned_scenes(SMALL), processes=count, done=lambda: told.append(1))
    assert len(told) == 22


def test_there_are_as_many_processes_as_cores_and_as_work_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5, 7}, raising=False)
    assert [processes_for(SceneSettings(), count) for count in (1, 127, 128, 255, 256, 100_000)] == [1, 1, 2, 3, 4, 4]
    assert processes_for(SceneSettings(size=64), 256) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {6}, raising=False)
    assert processes_for(SceneSettings(), 100_000) == 1


@pytest.mark.processes
@pytest.mark.parametrize("count", [1, 2])
def test_a_file_that_cannot_be_written_is_named_in_one_line(
    tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    blocked = out / ".making" / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "val_000001.png"

    def block(folder: Path, *arguments: object, **named: object) -> None:
        blocked.mkdir()
        write_scenes(folder, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("preprocess.demo.make_scenes.write_scenes", block)
    monkeypatch.setattr("preprocess.demo.make_scenes.processes_for", lambda *_: count)
    sizes = [
        f"--set=scenes.{name}={getattr(SMALL, name)}" for name in ("pretrain_images", "train_images", "val_images")
    ]
    assert scenes.main([f"--out={out}", *sizes, "--set=scenes.size=48"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("scenes:")]
    assert lines == [f"r2o: error: {blocked}: Is a directory; put that right and run the same command again"]


@pytest.mark.processes
def test_a_bug_in_a_process_is_told_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]+ in write_scene\n[\s\S]+KeyError: 'test'"):
        write_scenes(tmp_path, SMALL, [PlannedScene("test", 0)] * 5, processes=2, done=lambda: None)


@pytest.mark.processes
@pytest.mark.long
def test_a_killed_process_ends_the_command_in_one_line(tmp_path: Path) -> None:
    process = start(tmp_path / "demo")
    family = children(process)
    assert len(family) == 2
    family[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.strip().splitlines()[-1].startswith("r2o: error: a process that made scenes was killed")
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -15), (signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_nothing_outlives_the_command(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path / "demo")
    family = children(process)
    assert len(family) == 2
    os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert not psutil.wait_procs(family, timeout=10)[1]  # none is alive
    told = [line for line in errors.splitlines() if not line.startswith("scenes:")]
    assert told == (["r2o: interrupted; run the same command again to go on"] if number == signal.SIGINT else [])
    assert not (tmp_path / "demo" / "scenes.json").exists()
