"""`make bench-train`: a real run's speed on 1 and 2 processes, and what of its wall time is not its steps.

python -m tests.benchmarks.train [--images FOLDER] [--only scaling|overhead|beside] [--minutes 10] [--rounds 3]

Runs are those of `r2o pretrain`, each a process of its own, on real photographs where there are some (--images, by
default ../shared/data/imagenette/train beside the checkout), else on generated ones. With CUDA the 8-GPU recipe of
ImageNet-1K at its local batch, else configs/imagenette_r18.yaml. Use a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.artifacts.manifest import Manifest
from pipeline.estimates.cost import image_flops, usual_masks
from pipeline.foundation.settings import load_settings
from preprocess.config import ShardSettings
from tests.benchmarks.beside import beside, num_cores
from tests.benchmarks.photographs import SAMPLE, generated_images
from tests.benchmarks.step import PEAK
from tests.train.made_shards import write_shards
from train.config.pretrain import PretrainSettings
from train.run.log import read_log

IMAGENETTE = SAMPLE.parent / "imagenette" / "train"
DEVICES = torch.cuda.device_count()
CONFIG = Path("configs/imagenet1k_r50_8gpu.yaml" if DEVICES else "configs/imagenette_r18.yaml")
LOCAL_BATCH, STEPS = (128, 40) if DEVICES else (32, 12)
WARM = 2  # first steps that are not counted
BARE = ["epochs=1", "curriculum.hold_epochs=0", "run.log_every_steps=1", "run.probe_every_epochs=null"]
DEFAULTS = ["log_every_steps=10", "panels_every_epochs=10", "checkpoint_every_epochs=1"]  # where the config has others


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, one line a figure."""
    parser = argparse.ArgumentParser(description="Speed of whole runs.")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="that the run for the overhead takes at least")
    parser.add_argument("--only", choices=("scaling", "overhead", "beside"))
    parser.add_argument("--run", type=Path, help="where to keep the run for the overhead")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if DEVICES else f"CPU, {os.cpu_count()} cores"
    print(f"{name}; torch {torch.__version__}; {CONFIG}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["R2O_CACHE"] = f"{scratch}/marks"
        root = args.images or (IMAGENETTE if IMAGENETTE.is_dir() else generated_images(Path(scratch) / "images"))
        if args.only in (None, "scaling"):
            scaling(root, Path(scratch), args.rounds)
        if args.only in (None, "beside") and not DEVICES:
            shards = shards_of(root, Path(scratch) / "beside", STEPS * LOCAL_BATCH * num_cores())
            beside(Path(scratch), args.rounds, _rates_on(shards))
        if args.only in (None, "overhead"):
            overhead(root, Path(scratch), args.run or Path(scratch) / "run", args.minutes)
    return 0


def shards_of(root: Path, folder: Path, count: int | None = None) -> Path:
    """Shards of some images of a folder, evenly chosen, or of all; of each several times where there are too few."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = paths if count is None else [paths[i * len(paths) // count] for i in range(count)]
    for number, path in enumerate(chosen):
        link = folder / "images" / path.parent.name / f"{number}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    size = load_settings(PretrainSettings, "pretrain", CONFIG).data.image_size
    write_shards(folder / "images", folder / "shards", ShardSettings.model_validate({"superpixels": {"size": size}}))
    return folder / "shards"


def train(shards: Path, *runs: Path, processes: int, settings: Sequence[str]) -> None:
    """Runs of this repository's trainer, side by side, to their ends; on the CPU one thread a process."""
    started = [start(shards, run, processes=processes, settings=settings) for run in runs]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def start(
    shards: Path, run: Path, *, processes: int, settings: Sequence[str], environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    options = [f"--set=pretrain.{setting}" for setting in settings]
    program = ["train.pretrain", f"--shards={shards}", f"--run={run}", f"--config={CONFIG}", *options]
    launcher = ["pipeline.launchers.ranks", str(processes)] if processes > 1 else []
    threads = environment or ({} if DEVICES else {"OMP_NUM_THREADS": "1"})
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *program], env={**os.environ, **threads}, stderr=subprocess.PIPE, text=True
    )


def scaling(root: Path, scratch: Path, rounds: int) -> None:
    """The same local batch on 1 and 2 processes, and in two runs side by side that share nothing; they take turns."""
    counts = (1, 2) if DEVICES != 1 else (1,)
    shards = {count: shards_of(root, scratch / f"for{count}", STEPS * LOCAL_BATCH * count) for count in counts}
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for count in counts:
            run = scratch / f"scaling-{count}-{number}"
            batch = f"global_batch_size={LOCAL_BATCH * count}"
            train(shards[count], run, processes=count, settings=[batch, *BARE])
            rates.setdefault(f"{count} process{'es' if count > 1 else ''}", []).append(rate_of(run))
        if not DEVICES:
            apart = [scratch / f"apart-{place}-{number}" for place in (0, 1)]
            train(shards[1], *apart, processes=1, settings=[f"global_batch_size={LOCAL_BATCH}", *BARE])
            rates.setdefault("2 runs apart", []).append(sum(map(rate_of, apart)))
    best = {name: max(found) for name, found in rates.items()}
    for name, found in rates.items():
        every = ", ".join(f"{rate:.2f}" for rate in found)
        print(f"{name} × {LOCAL_BATCH} images, {STEPS} steps: {best[name]:.2f} images/s (of {every})")
    if len(counts) > 1:
        print(f"train.two_processes {best['2 processes'] / best['1 process']:.3f}")
    if not DEVICES:
        print(f"train.two_processes_of_two_runs {best['2 processes'] / best['2 runs apart']:.3f}")


def _rates_on(shards: Path) -> Callable[[Path, int, dict[str, str]], float]:
    """Gives a function that trains on one global batch a step, by so many processes, and tells images/s."""

    def rate(run: Path, processes: int, environment: dict[str, str]) -> float:
        settings = [f"global_batch_size={LOCAL_BATCH * num_cores()}", *BARE]
        process = start(shards, run, processes=processes, settings=settings, environment=environment)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        return rate_of(run)

    return rate


def rate_of(run: Path) -> float:
    """Images a second of a run that logs every step: the median of its steps but for the first."""
    return statistics.median(line["images_per_second"] for line in read_log(run)[WARM:])


def overhead(root: Path, scratch: Path, run: Path, minutes: float) -> None:
    """One run of all the images at the default settings, of as many epochs as it takes."""
    processes = DEVICES or 2
    shards, batch = shards_of(root, scratch / "all"), LOCAL_BATCH * processes
    few = shards_of(root, scratch / "few", 5 * batch)
    train(few, scratch / "trial", processes=processes, settings=[f"global_batch_size={batch}", *BARE])
    rate = rate_of(scratch / "trial")
    used = Manifest.read(shards).stored // batch * batch
    epochs = max(1, math.ceil(minutes * 60 * 1.05 * rate / used))
    settings = [f"global_batch_size={batch}", f"epochs={epochs}", "curriculum.hold_epochs=0"]
    train(shards, run, processes=processes, settings=[*settings, *(f"run.{one}" for one in DEFAULTS)])
    report(run, processes)


def report(run: Path, processes: int) -> None:
    """Where the wall time of a run went, from its first batch to its last step."""
    (times,) = read_log(run, figure="seconds_steps")
    seconds = {name.removeprefix("seconds_"): value for name, value in times.items() if name.startswith("seconds_")}
    writing = seconds.pop("writing")
    total = sum(seconds.values())
    done = times["step"] + 1
    settings = load_settings(PretrainSettings, "pretrain", run / "config.yaml")
    rate = done * settings.global_batch_size / total
    clusters = settings.num_clusters(0)
    flops = rate * image_flops(settings, num_clusters=clusters, masks=usual_masks(settings, clusters))
    name = torch.cuda.get_device_name() if DEVICES else ""
    peak = next((value for key, value in PEAK.items() if key in name), None)
    share = f", {flops / processes / peak:.1%} of peak" if peak else ""
    print(
        f"{done:.0f} steps of {settings.global_batch_size} images on {processes} processes in {total:.0f} s: ", end=""
    )
    print(f"{rate:.2f} images/s, {flops / 1e12:.2f} TFLOP/s{share}, data_wait {seconds['data_wait'] / total:.2%}")
    for name in sorted(set(seconds) - {"steps", "data_wait"}):
        print(f"  {name:12} {seconds[name]:8.2f} s  {seconds[name] / total:.2%}")
    saves = max(times["saves"], 1)
    print(
        f"  a checkpoint stalls the steps for {seconds['checkpoint'] / saves:.2f} s and is written in "
        f"{writing / saves:.2f} s beside them"
    )
    print(f"train.overhead {1 - (seconds['steps'] + seconds['data_wait']) / total:.4f}")


if __name__ == "__main__":
    sys.exit(main())
