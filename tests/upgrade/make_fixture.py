"""Make what test_upgrade.py reads: shards, an unfinished shard job and a stopped run, by the code of any checkout.

python tests/upgrade/make_fixture.py CHECKOUT FOLDER

FOLDER gets images/, shards/, unfinished/ and run/. Run it with the code of a release, when a later one must read what
that release left. Checkpoints are too large to keep: run/checkpoint.json says their keys, shapes, types and plain
values, and the test fills in numbers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SHARDS = {"images_per_shard": 2, "workers": 1, "max_bad_fraction": 0.5, "superpixels.size": 64,
          "superpixels.segments": 16, "maps": "{grid: {backend: grid, size: 64, rows: 2, columns: 2}}"}  # fmt: skip
RUN = """
pretrain:
  epochs: 8
  global_batch_size: 4
  data: {image_size: 64, view_size: 64, num_workers: 0}
  augment: {blur_kernel_size: 5}
  model: {backbone: resnet18, head_hidden_size: 16, projection_size: 8}
  refine: {clustering_group_size: 4}
  curriculum: {initial_num_clusters: 6, final_num_clusters: 2, hold_epochs: 1}
  optim: {base_lr: 0.5, warmup_epochs: 0.5}
  run:
    {log_every_steps: 1, panels_every_epochs: 100, panel_images: 2, checkpoint_every_steps: 1, probe_every_epochs: null}
"""
KEPT = ("config.yaml", "run.json", "log.jsonl")


def main(checkout: Path, folder: Path) -> None:
    """Everything, into a new folder."""
    folder.mkdir(parents=True)
    write_images(folder / "images")
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        finish(command(checkout, "preprocess.make_shards", images=folder / "images", shards=work / "shards"))
        shutil.copytree(work / "shards", folder / "shards")
        stop_shards(command(checkout, "preprocess.make_shards", images=folder / "images", shards=work / "unfinished"))
        shutil.copytree(work / "unfinished", folder / "unfinished")
        (work / "run.yaml").write_text(RUN)
        stop_run(checkout, work)
        keep_run(work / "run", folder / "run", {str(checkout): "/r2o", str(work): "/data"})


def write_images(folder: Path) -> None:
    """Six small pictures in two classes, and a file that is none."""
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        path = folder / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse.resize((72 + number, 64), Image.Resampling.BICUBIC).save(path, quality=80)
    (folder / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 no more")


def command(checkout: Path, module: str, **paths: Path) -> list[str]:
    """The command of a stage that makes shards, with the fixture's settings."""
    settings = [f"--set=shards.{key}={value}" for key, value in SHARDS.items()]
    os.environ["PYTHONPATH"] = str(checkout)
    return [sys.executable, "-m", module, *(f"--{name}={path}" for name, path in paths.items()), *settings]


def finish(argv: list[str]) -> None:
    """Run to the end."""
    subprocess.run(argv, cwd=os.environ["PYTHONPATH"], check=True)


def stop_shards(argv: list[str]) -> None:
    """Kill the driver as soon as it has noted a shard."""
    shards = Path(next(a for a in argv if a.startswith("--shards=")).removeprefix("--shards="))
    process = subprocess.Popen(argv, cwd=os.environ["PYTHONPATH"])
    while not list((shards / ".job").glob("*.tar.json")):
        assert process.poll() is None, "the job ended before it could be stopped"
        time.sleep(0.002)
    process.kill()
    process.wait()
    time.sleep(5)  # Ray's processes end by themselves
    for leftover in (*shards.glob(".*.tmp"), *(shards / ".job").glob(".*.tmp")):
        leftover.unlink()
    assert (shards / ".job" / "job.json").exists()
    assert not (shards / "manifest.json").exists()


def stop_run(checkout: Path, work: Path) -> None:
    """Pretrain, and ask for an end after the first step."""
    argv = [sys.executable, "-m", "train.pretrain", f"--shards={work / 'shards'}", f"--run={work / 'run'}"]
    process = subprocess.Popen([*argv, f"--config={work / 'run.yaml'}"], cwd=checkout)
    while not (work / "run" / "checkpoints" / "step-00000001.pt").exists():
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75


def keep_run(run: Path, folder: Path, names: dict[str, str]) -> None:
    """The run's small files without names of this machine, and the form of its newest checkpoint."""
    folder.mkdir()
    for name in KEPT:
        text = (run / name).read_text(encoding="utf-8")
        for here, there in names.items():
            text = text.replace(here, there)
        (folder / name).write_text(text, encoding="utf-8")
    record = json.loads((folder / "run.json").read_text())
    for start in record["starts"]:
        start["host"], start["device"] = "host", "CPU"
    (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    state = torch.load(newest, weights_only=True)
    lines = [f"{json.dumps(key)}: {json.dumps(form_of(value))}" for key, value in state.items()]
    text = "{" + ",\n".join([f'"name": "{newest.name}"', '"state": {' + ",\n".join(lines) + "}}"]) + "\n"
    (folder / "checkpoint.json").write_text(text)


def form_of(value: Any) -> Any:
    """A nested value as JSON: a tensor is its type and shape, a key that is a number is marked."""
    if isinstance(value, torch.Tensor):
        return {"tensor": " ".join([str(value.dtype).removeprefix("torch."), *map(str, value.shape)])}
    if isinstance(value, dict):
        return {f"#{key}" if isinstance(key, int) else key: form_of(one) for key, one in value.items()}
    return [form_of(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
