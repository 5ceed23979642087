"""Runs of two ranks that are killed, told to stop, starved of disk and fed with NaN: nothing is lost, bits agree."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from pipeline.artifacts.run_files import CHECKPOINTS_FOLDER
from train.engine.checkpoint import checkpoints
from train.run.log import read_log

pytestmark = pytest.mark.processes

TESTS = Path(__file__).parent
NOT_COMPARED = {
    "images_per_second",
    "images_per_second_per_device",
    "data_wait",
    "overhead",
    "memory_gb",
    "eta_seconds",
}
SMALL = {
    "pretrain": {
        "epochs": 3,
        "global_batch_size": 16,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 1},
        "augment": {"blur_kernel_size": 5},
        "model": {"backbone": "resnet18", "head_hidden_size": 64, "projection_size": 16},
        "refine": {"clustering_group_size": 8},
        "curriculum": {"initial_num_clusters": 12, "hold_epochs": 1},
        "optim": {"base_lr": 1.0, "warmup_epochs": 0.5},
        "run": {"log_every_steps": 1, "panels_every_epochs": 100, "panel_images": 2, "checkpoint_every_steps": 2},
    }
}
RANKS = [sys.executable, "-m", "pipeline.launchers.ranks", "2"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def start(
    program: list[str], shards: Path, run: Path, config: Path, *options: str, **environment: str
) -> subprocess.Popen[str]:
    """A job in a process group of its own."""
    fixed = [f"--shards={shards}", f"--run={run}", f"--config={config}"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [*program, *fixed, *options], env=surroundings, stderr=subprocess.PIPE, text=True, process_group=0
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == code, errors
    return errors


def wait_for_steps(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(read_log(run)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def told(run: Path) -> list[dict[str, float]]:
    """What the log says of the steps, but for how long they took."""
    return [{k: v for k, v in line.items() if k not in NOT_COMPARED} for line in read_log(run)]


def assert_same(run: Path, reference: Path) -> None:
    assert told(run) == told(reference)
    assert (run / "backbone.pt").read_bytes() == (reference / "backbone.pt").read_bytes()


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    found = [c for c in psutil.Process(launcher.pid).children() if c.environ().get("RANK") == str(rank)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def undisturbed(shards: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(start([*RANKS, "train.pretrain"], shards, run, config))
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_asks_to_be_requeued(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """As Slurm sends it: to the whole process group."""
    process = start([*RANKS, "train.pretrain"], shards, tmp_path / "run", config)
    wait_for_steps(tmp_path / "run", 2, process)
    os.killpg(process.pid, number)
    errors = finish(process, 75)
    (line,) = (line for line in errors.splitlines() if number.name in line)
    step = int(checkpoints(tmp_path / "run")[-1].stem.split("-")[1])
    assert line == f"pretrain: {number.name}: stopped after step {step}; the same command goes on from there"
    assert len(read_log(tmp_path / "run")) == step < 12
    errors = finish(start([*RANKS, "train.pretrain"], shards, tmp_path / "run", config))
    assert f"going on after step {step} " in errors
    assert_same(tmp_path / "run", undisturbed)


def test_a_signal_before_the_first_step_asks_to_be_requeued_too(shards: Path, config: Path, tmp_path: Path) -> None:
    process = start([*RANKS, "train.pretrain"], shards, tmp_path / "run", config)
    while not (tmp_path / "run" / "run.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    errors = finish(process, 75)
    assert "SIGTERM: stopped" in errors
    assert "Traceback" not in errors


def test_a_stopped_run_goes_on_with_other_ranks_and_workers_on_the_same_batches(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    process = start([*RANKS, "train.pretrain"], shards, tmp_path / "run", config)
    wait_for_steps(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGINT)
    assert "SIGINT: stopped after step" in finish(process, 130)
    alone = [sys.executable, "-m", "train.pretrain"]
    finish(start(alone, shards, tmp_path / "run", config, "--set=pretrain.data.num_workers=2"))
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [one["num_ranks"] for one in starts] == [2, 1]
    for step, (ours, theirs) in enumerate(zip(told(tmp_path / "run"), told(undisturbed), strict=True)):
        # from the resume on, sums are taken in another order, and the difference grows from step to step
        tolerance = 0.0 if step < starts[1]["step"] else 2e-3 if step == starts[1]["step"] else 0.1
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=tolerance), step


def test_a_dead_rank_ends_all_at_once_and_is_named(shards: Path, config: Path, tmp_path: Path) -> None:
    process = start([*RANKS, "train.pretrain"], shards, tmp_path / "run", config)
    wait_for_steps(tmp_path / "run", 2, process)
    rank_process(process, 1).kill()
    died = time.monotonic()
    assert process.wait(timeout=5) == 137
    assert time.monotonic() - died < 5
    errors = finish(process, 137)
    assert errors.splitlines()[-1] == "r2o: rank 1 was ended by SIGKILL; is there enough memory?"


def test_torchrun_restarts_from_the_last_checkpoint(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    program = [*TORCHRUN, "--max-restarts=1", "-m", "--", "train.pretrain"]
    process = start(program, shards, tmp_path / "run", config)
    wait_for_steps(tmp_path / "run", 4, process)
    rank_process(process, 1).kill()
    assert "going on after step" in finish(process)
    assert_same(tmp_path / "run", undisturbed)


def srun_environment(rank: int, port: int) -> dict[str, str]:
    """What srun -n 2 sets on one node."""
    return {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost",
        "SLURM_JOB_ID": str(port), "SLURM_STEP_ID": "0",
    }  # fmt: skip


def test_srun_starts_a_run_and_a_survivor_says_that_it_lost_the_other(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    alone, run = [sys.executable, "-m", "train.pretrain"], tmp_path / "run"
    ranks = [start(alone, shards, run, config, **srun_environment(r, os.getpid())) for r in (0, 1)]
    wait_for_steps(run, 3, ranks[0])
    ranks[1].kill()
    ranks[1].communicate()
    (line,) = (line for line in finish(ranks[0], 1).splitlines() if line.startswith("r2o:"))
    assert line.startswith("r2o: rank 0 lost the others: rank 1 has died, and its own message says why")
    ranks = [start(alone, shards, run, config, **srun_environment(r, os.getpid() + 1)) for r in (0, 1)]
    for process in ranks:
        finish(process)
    assert_same(run, undisturbed)


def test_what_is_not_finite_stops_all_ranks_before_the_update_and_is_named(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    every_step = "--set=pretrain.run.checkpoint_every_steps=1"
    process = start([*RANKS, "tests.train.poisoned_program"], shards, run, config, every_step)
    (line,) = (line for line in finish(process, 2).splitlines() if "error" in line)
    assert (
        "step 3: loss nan, gradient norm nan, nothing was updated; not finite first on rank 1: view, of samples" in line
    )
    written = json.loads((run / "not-finite-step-00000003.json").read_text())
    (culprit,) = written["culprits"]
    assert (culprit["rank"], culprit["quantity"], len(culprit["sample_ids"])) == (1, "view", 8)
    assert culprit["keys"] == [f"{i:09d}" for i in culprit["sample_ids"]]
    assert ", ".join(culprit["keys"]) in line
    assert [p.name for p in checkpoints(run)] == ["step-00000002.pt", "step-00000003.pt"]
    finish(start([*RANKS, "train.pretrain"], shards, run, config))  # where the batch is what it should be
    assert_same(run, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds two checkpoints, but not three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=340m", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.system
def test_a_full_disk_stops_the_run_and_the_checkpoints_before_are_whole(
    undisturbed: Path, shards: Path, config: Path, small_disk: Path
) -> None:
    run = small_disk / "run"
    (line,) = (
        line
        for line in finish(start([*RANKS, "train.pretrain"], shards, run, config), 2).splitlines()
        if "error" in line
    )
    assert "a checkpoint cannot be written to" in line
    assert "No space left on device" in line
    assert f"{checkpoints(run)[-1]} is whole" in line
    assert sorted(p.name for p in (run / CHECKPOINTS_FOLDER).iterdir()) == ["step-00000000.pt", "step-00000002.pt"]
    subprocess.run(["mount", "-o", "remount,size=1g", str(small_disk)], check=True)
    finish(start([*RANKS, "train.pretrain"], shards, run, config))
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_fifty_kills_at_random_change_no_bit(shards: Path, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"R2O_KILL_SEED={seed}")
    config = tmp_path / "config.yaml"
    longer = {**SMALL["pretrain"], "epochs": 10, "data": {**SMALL["pretrain"]["data"], "num_workers": 0}}
    config.write_text(yaml.safe_dump({"pretrain": longer}))
    program = [sys.executable, str(TESTS / "kill_program.py"), str(shards), str(config), str(tmp_path), "50"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parents[1])}
    done = subprocess.run(
        [*program, os.environ.get("R2O_KILL_SEED", str(seed))], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    kills = json.loads(done.stdout)
    print(*kills, sep="\n")
    assert len(kills) == 50
    assert all(-signal.SIGKILL in kill["codes"] for kill in kills)
    assert sum(kill["half_written"] for kill in kills) >= 5  # inside a save
    assert len({kill["step"] for kill in kills}) >= 5
    assert max(kill["seconds"] for kill in kills) < 60  # also where one rank was left
    finished = [p for p in tmp_path.glob("killed*") if (p / "backbone.pt").exists()]
    assert finished
    for run in finished:
        assert_same(run, tmp_path / "undisturbed")
        assert torch.load(run / "backbone.pt", weights_only=True)["format"] == "r2o.backbone"
