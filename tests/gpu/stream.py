"""The part `stream`: whole runs at the GPU's full rate. Does the CPU keep up, and what is not steps?"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.gpu.places import CORES, DRY, ROOT, shards
from tests.gpu.runs import FAST, TINY_IMAGES, afresh, patience, pretrain
from tests.gpu.telling import tell
from train.run.folder import read_record
from train.run.log import read_log

CONFIG = None if DRY else ROOT / "configs/imagenet1k_r50_8gpu.yaml"
BATCH, EPOCHS = (16, 1) if DRY else (128, 70)
BARE = [
    f"epochs={EPOCHS}",
    f"global_batch_size={BATCH}",
    "curriculum.schedule=constant",
    "curriculum.hold_epochs=0",
    "run.log_every_steps=1",
    "run.probe_every_epochs=null",
    "run.panels_every_epochs=100000",
    "run.checkpoint_every_epochs=100000",
    "run.milestone_every_epochs=null",
    *FAST,
]
SMALL = [
    *TINY_IMAGES,
    "model.backbone=resnet18",
    "refine.clustering_group_size=8",
    "curriculum.initial_num_clusters=12",
]
MIDDLE = ("images_per_second", "data_wait", "overhead", "memory_gb", "loss")
WARM = 4  # first steps that are not counted


def main() -> None:
    for decode in ("host", "device"):
        run(decode)


def run(decode: str) -> None:
    """One run, and the medians of its steps."""
    name = f"stream-{decode}"
    folder = afresh(name)
    sets = [*BARE, *(SMALL if DRY else []), f"data.decode={decode}"]
    command, limit = pretrain(name, shards(), *sets, config=CONFIG), patience(45)
    code: int | str
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        print(done.stdout[-2000:], done.stderr[-3000:])
        code = done.returncode
    except subprocess.TimeoutExpired:
        code = f"{limit} s are over"
    log = read_log(folder)[WARM:] or read_log(folder)
    if not log:
        tell(decode, ok=False, exit=code)
        return
    middle = {figure: round(sorted(line[figure] for line in log)[len(log) // 2], 4) for figure in MIDDLE}
    mean = round(sum(line["data_wait"] for line in log) / len(log), 4)
    figures = {"device": device_of(folder), "cores": CORES, "steps": len(log), **middle}
    tell(decode, ok=code == 0, exit=code, **figures, data_wait_mean=mean)


def device_of(folder: Path) -> str:
    """Which kind a run's record names."""
    record = read_record(folder)
    name = record["starts"][-1]["device"] if record else "CPU"
    return "cpu" if name.startswith("CPU") else "cuda"


if __name__ == "__main__":
    main()
