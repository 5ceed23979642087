"""What a run says where memory is lacking: settings that make the same batch, in the order of what helps; its end."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.foundation.errors import exit_code_of
from pipeline.foundation.settings import apply_overrides
from tests.train.conftest import SMALL_RUN
from train import pretrain
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.engine import loop
from train.engine.memory import what_to_turn
from train.out_of_memory import Lack

GPU, HOST, WORKER = Lack("GPU"), Lack("host"), Lack("host", of_worker=True)


def turned(lack: Lack, *, device: str = "cuda", num_ranks: int = 1, **changes: Any) -> str:
    settings = PretrainSettings.model_validate({"global_batch_size": 256, **changes})
    plan = plan_batches(settings, num_samples=2000, num_ranks=num_ranks)
    return what_to_turn(settings, plan, lack, device=device)


def test_the_batch_comes_first_and_what_changes_numbers_last() -> None:
    assert turned(GPU) == (
        "go on with pretrain.run.accumulation=2 (of 128 images in place of 256; batch norm sees one pass); or begin "
        "another RUN with pretrain.run.precision=bf16, or pretrain.data.view_size below 224"
    )
    assert "precision" not in turned(GPU, run={"precision": "bf16"})
    assert "precision" not in turned(GPU, run={"precision": "fp16"})
    assert "pretrain.run.precision=bf16" in turned(GPU, run={"precision": "tf32"})
    assert "pretrain.data.image_size and view_size below 224" in turned(GPU, model={"backbone": "vit_s_16"})


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("run", [{}, {"accumulation": 2}, {"local_batch_size": None}])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(
    ("batch", "group", "parts"), [(256, 32, 2), (64 * 9, 16, None), (1024, 256, None), (64 * 3, 16, None)]
)
def test_the_values_make_the_same_global_batch_of_whole_groups(
    batch: int, group: int, parts: int | None, given: bool, run: dict[str, Any], num_ranks: int
) -> None:
    local = batch // num_ranks // run.get("accumulation", 1)
    changes = {
        "global_batch_size": batch, "data": {"shuffle_lanes": 4}, "refine": {"clustering_group_size": group},
        "run": {**run, **({"local_batch_size": local} if given else {})},
    }  # fmt: skip
    text = turned(GPU, num_ranks=num_ranks, **changes)
    options = re.findall(r"pretrain\.[\w.]+=\d+", text)
    smaller = [option for option in options if option.startswith("pretrain.run.")]
    groups = local // group
    factors = [n for n in range(2, groups + 1) if groups % n == 0]
    if not factors:
        assert text.startswith("begin another RUN with ")
        options = [option for option in options if "precision" not in option]
        assert options[0] == f"pretrain.refine.clustering_group_size={group // 2}"
    else:
        assert text.startswith(f"go on with {' '.join(smaller)} (of {local // factors[0]} images in place of {local};")
        assert "clustering_group_size" not in text
    settings = PretrainSettings.model_validate(apply_overrides({"pretrain": changes}, options)["pretrain"])
    plan = plan_batches(settings, num_samples=2000, num_ranks=num_ranks)
    assert plan.local_batch_size == local // (factors[0] if factors else 2)
    assert plan.global_batch_size == batch
    assert parts is None or factors[0] == parts


def test_host_memory_is_the_readers_first_where_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    readers, passes = "pretrain.data.num_workers=2 pretrain.data.prefetch_batches=1", "pretrain.run.accumulation=2"
    assert turned(HOST).startswith(f"go on with {readers}, or {passes}")
    assert turned(WORKER, device="cpu").startswith(f"go on with {readers}, or {passes}")
    assert re.match(rf"go on with {passes} \([^)]*\), or {readers}; or begin", turned(HOST, device="cpu"))
    assert "num_workers" not in turned(GPU)
    assert "prefetch" not in turned(HOST, data={"prefetch_batches": 1})
    assert "num_workers" not in turned(HOST, data={"num_workers": 0})


SMALL = {
    **SMALL_RUN,
    "run": {"panel_images": 1, "checkpoint_every_steps": 1, "probe_images": 16},
}
PASSES = "go on with pretrain.run.accumulation=2 (of 8 images in place of 16; batch norm sees one pass)"


@pytest.fixture
def arguments(shards: Path, tmp_path: Path) -> list[str]:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"pretrain": SMALL}))
    return [f"--shards={shards}", f"--run={tmp_path / 'run'}", f"--config={config}"]


def ends_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert exit_code_of(lambda: pretrain.main(arguments)) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if "error" in line)
    return line


def too_large(*_: object, **__: object) -> None:
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.processes
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("place", "doing"),
    [
        ("build_training", "before the first step"),
        ("Panels.refined_maps", "panels after step 0"),
        ("train_step", "step 0"),
        ("Probe.figures", "probe after step 4"),
        ("Checkpoints.save", "checkpoint after step 1"),
    ],
)
def test_every_part_of_a_run_says_what_it_did_and_what_to_turn(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str, doing: str
) -> None:
    if place == "Checkpoints.save":
        save = loop.Checkpoints.save
        late = lambda self, training, **how: save(self, training, **how) if how["step"] == 0 else too_large()  # noqa: E731
        monkeypatch.setattr(loop.Checkpoints, "save", late)
    else:
        monkeypatch.setattr(f"train.engine.loop.{place}", too_large)
    line = ends_in_one_line(arguments, capsys)
    assert line.startswith(f"r2o: error: {doing}: out of host memory (1.15e+09 GB more asked for); {PASSES}; or begin")
    monkeypatch.undo()


@pytest.mark.processes
@pytest.mark.usefixtures("shallow")
def test_the_same_run_goes_on_with_the_settings_that_were_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step = loop.train_step
    second = tmp_path / "run" / "checkpoints" / "step-00000002.pt"

    def lacking(*given: Any, **how: Any) -> Any:
        deadline = time.monotonic() + 60
        while how["step"] == 2 and not second.exists() and time.monotonic() < deadline:
            time.sleep(0.02)  # written by a thread
        return step(*given, **how) if how["step"] < 2 else too_large()

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", lacking)
        line = ends_in_one_line(arguments, capsys)
    assert "step 2: out of host memory" in line
    (option,) = re.findall(r"go on with (\S+)", line)
    assert exit_code_of(lambda: pretrain.main([*arguments, f"--set={option}"])) == 0
    assert "going on after step 2 " in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.long
@pytest.mark.parametrize("rank", ["1", "0 1"])
def test_ranks_end_at_once_with_the_line_of_one(arguments: list[str], rank: str) -> None:
    program = [sys.executable, "-m", "pipeline.launchers.ranks", "2", "tests.train.starved_program"]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "R2O_STARVED_RANKS": rank}
    two_groups = ["--set=pretrain.global_batch_size=32", "--set=pretrain.run.local_batch_size=16"]
    done = subprocess.run(
        [*program, *arguments, *two_groups], env=surroundings, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "r2o:" in line)
    named = "rank 1: " if rank == "1" else ""
    assert line.startswith(
        f"r2o: error: {named}step 1: out of host memory (1.15e+09 GB more asked for); go on with "
        "pretrain.run.local_batch_size=8 pretrain.run.accumulation=2 "
    )
