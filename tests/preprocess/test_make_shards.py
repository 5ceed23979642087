"""The driver with a real local Ray: one cluster for most tests, starting one takes seconds."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.exit_codes import EXIT_TOO_MANY_BAD
from preprocess import make_shards
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images

REPOSITORY = Path(__file__).parents[2]
PER_SHARD = 4
SETTINGS = ["--set", f"shards.images_per_shard={PER_SHARD}", "--set", "shards.max_bad_fraction=0.1"]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_folder):
    """200 images in two classes, one of them broken: 50 shards."""
    root = make_folder(tmp_path_factory.mktemp("source") / "images", 199, classes=("cat", "dog"))
    (root / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    return root


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """What the shards must be, made in this process, one after the other."""
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    settings = ShardSettings(images_per_shard=PER_SHARD)
    job = ShardJob(folder, Plan(list_images(images), settings))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(task, folder=job.folder))
    job.finish()
    return contents(folder)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocess.make_shards", *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
def test_shards_do_not_depend_on_the_number_of_workers(cluster, images, undisturbed, tmp_path, capsys, workers):
    arguments = ["--images", str(images), "--shards", str(tmp_path / "s"), *SETTINGS]
    assert make_shards.main([*arguments, "--set", f"shards.workers={workers}"]) == 0
    assert contents(tmp_path / "s") == undisturbed
    printed = capsys.readouterr()
    assert "199 of 200 images in 50 shards" in printed.out
    assert "1 quarantined: JPEG: " in printed.out
    assert "shards: 200/200 images" in printed.err
    assert "1 bad" in printed.err


@pytest.mark.processes
def test_a_killed_driver_is_resumed_to_the_same_bytes(cluster, images, undisturbed, tmp_path, capsys):
    shards = tmp_path / "s"
    arguments = ["--images", str(images), "--shards", str(shards), *SETTINGS]
    command = [sys.executable, "-m", "preprocess.make_shards", *arguments, "--set", "shards.workers=1"]
    log = (tmp_path / "log").open("wb")
    with log, subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log) as driver:
        deadline = time.monotonic() + 60
        while len(list((shards / ".job").glob("*.tar.json"))) < 3:
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        driver.send_signal(signal.SIGKILL)
    assert driver.returncode == -signal.SIGKILL
    assert not (shards / "manifest.json").exists()
    (shards / ".r2o-000049.tar.abc.tmp").write_bytes(b"what a killed worker leaves")
    kept = {path.name: path.stat().st_mtime_ns for path in shards.glob("*.tar") if _is_marked(path)}
    assert 3 <= len(kept) < 50
    assert make_shards.main(arguments) == 0
    assert contents(shards) == undisturbed
    assert "of 50 shards are there" in capsys.readouterr().err
    assert {name: (shards / name).stat().st_mtime_ns for name in kept} == kept


def _is_marked(tar: Path) -> bool:
    return (tar.parent / ".job" / f"{tar.name}.json").exists()


@pytest.mark.processes
def test_a_rerun_starts_no_ray_and_says_so(cluster, images, tmp_path, capsys):
    """RAY_ADDRESS leads nowhere, so a start would fail."""
    arguments = ["--images", str(images), "--shards", str(tmp_path / "s"), *SETTINGS]
    assert make_shards.main(arguments) == 0
    start = time.monotonic()
    done = run(*arguments, RAY_ADDRESS="127.0.0.1:1")
    assert time.monotonic() - start < 10
    assert (done.returncode, done.stderr) == (0, "")
    assert "finished, and the images unchanged by name and size; 199 of 200 images" in done.stdout
    assert done.stdout.count("\n") == 1
    (tmp_path / "s" / "r2o-000007.tar").unlink()
    broken = run(*arguments, RAY_ADDRESS="127.0.0.1:1")
    assert broken.returncode == 2
    assert "RAY_ADDRESS=127.0.0.1:1: no Ray cluster there" in broken.stderr
    assert make_shards.main(arguments) == 0
    assert (tmp_path / "s" / "r2o-000007.tar").exists()


@pytest.mark.processes
def test_too_many_bad_images_have_an_exit_code_of_their_own(cluster, tmp_path, make_folder, capsys):
    root = make_folder(tmp_path / "images", 3)
    (root / "zero.jpg").write_bytes(b"")
    arguments = ["--images", str(root), "--shards", str(tmp_path / "s")]
    for _ in range(2):
        assert make_shards.main(arguments) == EXIT_TOO_MANY_BAD
        error = capsys.readouterr().err.splitlines()[-1]
        assert "1 of 4 images are bad (25.0%), more than shards.max_bad_fraction allows" in error
        assert Manifest.read(tmp_path / "s").over_limit
    assert make_shards.main([*arguments, "--set", "shards.max_bad_fraction=0.3"]) == 0
    assert not Manifest.read(tmp_path / "s").over_limit
    assert make_shards.main(arguments) == EXIT_TOO_MANY_BAD
    assert Manifest.read(tmp_path / "s").over_limit


@pytest.mark.processes
def test_an_unwritable_folder_is_one_line(cluster, images, capsys):
    assert make_shards.main(["--images", str(images), "--shards", "/proc/nowhere/shards", *SETTINGS]) == 2
    error = capsys.readouterr().err
    assert error.startswith("r2o: error: /proc/nowhere")
    assert error.count("\n") == 1


@pytest.mark.processes
def test_a_worker_that_cannot_write_is_one_line_and_resumable(cluster, images, undisturbed, tmp_path, capsys):
    shards = tmp_path / "s"
    (shards / ".job").mkdir(parents=True)
    (shards / "r2o-000005.tar").mkdir()
    arguments = ["--images", str(images), "--shards", str(shards), *SETTINGS]
    assert make_shards.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("r2o: error: ")
    assert "Is a directory; put that right" in error
    (shards / "r2o-000005.tar").rmdir()
    assert make_shards.main(arguments) == 0
    assert contents(shards) == undisturbed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--images", "nowhere", "--shards", "s"], "nowhere: no such file or folder"),
        (["--images", "empty", "--shards", "s"], "empty: the folder is empty"),
        (["--images", "texts", "--shards", "s"], "texts: no image among its files (2 ignored)"),
        (["--images", "good", "--shards", "texts"], "texts: holds 'a.txt' but no shards"),
        (["--images", "good", "--shards", "s", "--config", "none.yaml"], "config none.yaml does not exist"),
        (
            ["--images", "good", "--shards", "s", "--set", "shards.sed=1"],
            "unknown key 'shards.sed'; did you mean 'seed'",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, complaint, tmp_path, make_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "texts" / name).write_text("text")
    make_folder(tmp_path / "good", 1)
    assert make_shards.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("r2o: error: ")
    assert complaint in error
    assert error.count("\n") == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (signal.SIGINT, 130, "r2o: interrupted; run the same command again to go on"),
        (signal.SIGTERM, 75, "r2o: SIGTERM: stopped; run the same command again to go on"),
        (signal.SIGHUP, 75, "r2o: SIGHUP: stopped; run the same command again to go on"),
    ],
)
def test_a_signal_is_one_line_and_resumable(images, undisturbed, tmp_path, sent, code, said):
    shards = tmp_path / "s"
    arguments = ["--images", str(images), "--shards", str(shards), *SETTINGS]
    command = [sys.executable, "-m", "preprocess.make_shards", *arguments, "--set", "shards.workers=1"]
    log = tmp_path / "log"
    with log.open("wb") as out, subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=out) as driver:
        while not list((shards / ".job").glob("*.tar.json")):
            assert driver.poll() is None, log.read_text()
            time.sleep(0.002)
        driver.send_signal(sent)
        driver.wait(60)
    assert driver.returncode == code
    told = [line for line in log.read_text().splitlines() if not line.startswith("shards: ")]  # of a slow machine
    assert told == [f"{images}: class folders, 200 images", said]
    assert run(*arguments).returncode == 0
    assert contents(shards) == undisturbed
