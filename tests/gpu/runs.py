"""Whole runs, as `r2o pretrain` starts them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.gpu.places import CORES, DRY, RUNS

TINY_IMAGES = ["data.image_size=64", "data.view_size=64", "augment.blur_kernel_size=5"]
FAST = [
    f"data.num_workers={max(1, CORES - 1)}",
    "run.precision=bf16",
    "run.channels_last=true",
    "optim.warmup_epochs=0.5",
]


def pretrain(name: str, where: Path, *sets: str, config: Path | None = None) -> list[str]:
    """The command of a run in RUNS; the last of equal settings counts."""
    return [sys.executable, "-m", "train.pretrain", *arguments(name, where, *sets, config=config)]


def arguments(name: str, where: Path, *sets: str, config: Path | None = None) -> list[str]:
    """The same without the program."""
    places = [f"--shards={where}", f"--run={RUNS / name}"]
    return [*places, *([f"--config={config}"] if config else []), *(f"--set=pretrain.{s}" for s in sets)]


def afresh(name: str) -> Path:
    """The folder of a run, with nothing left of an earlier one."""
    shutil.rmtree(RUNS / name, ignore_errors=True)
    RUNS.mkdir(parents=True, exist_ok=True)
    return RUNS / name


def patience(seconds: float) -> float:
    """How long to wait for something; longer where a CPU does a GPU's work."""
    return 240 if DRY else seconds
