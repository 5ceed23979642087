"""The part `smoke`: small runs side by side, one killed and resumed, one asked to end, and an evaluation."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from pipeline.artifacts.run_files import CHECKPOINTS_FOLDER
from pipeline.foundation.exit_codes import EXIT_REQUEUE
from tests.gpu.places import DRY, shards
from tests.gpu.runs import afresh, patience, pretrain
from tests.gpu.telling import check, tell
from train.run.log import read_log

SMALL = {
    "epochs": 2,
    "global_batch_size": 16,
    "data": {"image_size": 64, "view_size": 64, "num_workers": 1},
    "augment": {"blur_kernel_size": 5},
    "model": {"backbone": "resnet18", "head_hidden_size": 64, "projection_size": 16},
    "refine": {"clustering_group_size": 8},
    "curriculum": {"initial_num_clusters": 12, "hold_epochs": 1},
    "optim": {"base_lr": 2.0, "warmup_epochs": 0.5},
    "run": {
        "log_every_steps": 1,
        "panels_every_epochs": 1,
        "panel_images": 3,
        "probe_every_epochs": 1,
        "probe_images": 48,
    },
}
VARIANTS = {
    "fp32": [],
    "bf16_last": ["run.precision=bf16", "run.channels_last=true"],
    "device_decode": ["data.decode=device", "run.precision=bf16"],
    "host_augment": ["data.augment=host"],
    "fp16": ["run.precision=fp16", "run.channels_last=true"],
    "accumulation": ["run.accumulation=2", "run.precision=bf16"],
    "detcon": ["objective.loss=detcon_b"],
    "release": [
        "objective.rows=all",
        "model.concatenate_views=true",
        "refine.assign=superpixel",
        "objective.roi_aligned=false",
    ],
    "compile": ["run.compile=true", "run.precision=bf16", "run.channels_last=true"],
}
IN_DRY = ("fp32",)  # the evaluation is of its run; the part `stream` decodes on the device
SCENES = ("pretrain_images=4", "train_images=16", "val_images=6", "size=96")
EVALUATION = (
    "iterations=20",
    "batch_size=4",
    "crop_size=64",
    "lr=0.02",
    "head_channels=16",
    "auxiliary_channels=16",
    "num_workers=1",
)

Process = subprocess.Popen[str]


def main() -> None:
    folder = afresh("smoke")
    folder.mkdir()
    config = folder / "small.yaml"
    config.write_text(yaml.safe_dump({"pretrain": SMALL}))
    deadline = time.monotonic() + patience(75)
    started: dict[str, Process] = {}
    for name, sets in VARIANTS.items():
        if name in IN_DRY or not DRY:
            started[name] = start(pretrain(f"smoke/{name}", shards("tiny"), *sets, config=config))
    # Of CPUs some take half a minute for a step in bf16.
    more = ("epochs=4", "run.checkpoint_every_steps=1", f"run.precision={'fp32' if DRY else 'bf16'}")
    again = pretrain("smoke/killed", shards("tiny"), *more, config=config)
    victim = start(again)
    asked = start(pretrain("smoke/asked", shards("tiny"), "epochs=400", config=config))
    made = (folder / "killed" / CHECKPOINTS_FOLDER).glob
    wait_until(lambda: any(path.stem > "step-00000000" for path in made("step-*.pt")), victim, deadline)
    victim.kill()
    victim.communicate()
    started["resumed"] = start(again)
    wait_until(lambda: len(read_log(folder / "asked")) >= 3, asked, deadline)
    asked.send_signal(signal.SIGTERM)
    said, _ = asked.communicate(timeout=60)
    tell("SIGTERM", ok=asked.returncode == EXIT_REQUEUE, exit=asked.returncode, said=said.splitlines()[-1:])
    for name, process in started.items():
        finish(name, process, folder)
    with check("evaluation on VOC's layout") as c:
        c.update(evaluated(folder))


def start(command: list[str]) -> Process:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def wait_until(happened: Callable[[], bool], process: Process, deadline: float) -> None:
    """Until it has, the process has ended, or time is up."""
    while not happened() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)


def finish(name: str, process: Process, folder: Path) -> None:
    """Wait for a run, and tell how it ended."""
    said, _ = process.communicate()
    print(f"--- {name}\n{said}")
    log = read_log(folder / ("killed" if name == "resumed" else name))
    figures: dict[str, object] = {}
    if log:
        figures = {"last_loss": log[-1]["loss"], "steps": len(log), "memory_gb": log[-1]["memory_gb"]}
    ok = process.returncode == 0 and (name != "resumed" or "going on after step" in said)
    if not ok:
        figures["said"] = said.splitlines()[-6:]
    tell(name, ok=ok, exit=process.returncode, **figures)


def evaluated(folder: Path) -> dict[str, object]:
    """Segmentation on the device, of generated scenes in a tiny VOC folder."""
    scenes = folder / "scenes"
    command = [sys.executable, "-m", "preprocess.scenes", f"--out={scenes}", *(f"--set=scenes.{n}" for n in SCENES)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    root = next(path.parent for path in scenes.rglob("JPEGImages"))
    command = [sys.executable, "-m", "train.evals.voc", f"--run={folder / 'fp32'}", f"--voc={root}"]
    sets = [f"--set=eval_voc.{one}" for one in EVALUATION]
    done = subprocess.run([*command, *sets], capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return {"ok": done.returncode == 0, "said": (done.stdout or done.stderr).splitlines()[-4:]}


if __name__ == "__main__":
    main()
