"""`make bench-step`: K-means against a loop and scikit-learn, and an R2O step against a BYOL step and the floor.

python -m tests.benchmarks.step [--images FOLDER] [--rounds 5] [--batch 32] [--backbone resnet50] [--only PART]

On a CUDA device where there is one, else on the CPU (bf16 where `--precision` says so). Real photographs where there
are some (--images, by default ../shared/data/imagenet1k_sample beside the checkout), else generated ones. What is
compared takes turns; best of some rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from preprocess.config import ShardSettings
from tests.benchmarks.clustering import clustering
from tests.benchmarks.heads import heads
from tests.benchmarks.photographs import SAMPLE, generated_images
from tests.benchmarks.trainer import Bare, Trainer, floor_of, sections_of, settings_of
from tests.benchmarks.turns import DEVICE, best_of, wait
from tests.train.made_shards import write_shards
from train.engine.build import compile_backbones

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "V100": 125e12}  # dense half precision FLOP/s


def main(argv: Sequence[str] | None = None) -> int:
    """Everything, one line a figure."""
    parser = argparse.ArgumentParser(description="Speed of refinement and of a step, as ratios.")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images of a step, a multiple of 32")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--only", choices=("kmeans", "step", "heads", "profile", "sweep"))
    parser.add_argument("--sweep", type=int, nargs="*", help="local batches; by default 32 64 128 256 on a GPU")
    args = parser.parse_args(argv)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; best of {args.rounds}")
    sweep = ([32, 64, 128, 256] if DEVICE.type == "cuda" else []) if args.sweep is None else args.sweep
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["R2O_CACHE"] = f"{scratch}/marks"
        root = args.images or (SAMPLE if SAMPLE.is_dir() else generated_images(Path(scratch) / "images"))
        shards = Path(scratch) / "shards"
        write_shards(root, shards, ShardSettings(images_per_shard=64))
        parts = {
            "kmeans": lambda: clustering(shards, args.rounds),
            "step": lambda: steps(shards, args),
            "heads": lambda: heads(shards, args),
            "profile": lambda: costs(shards, args),
            "sweep": lambda: [sizes(shards, args, batch, compiled) for batch in sweep for compiled in (False, True)],
        }
        for name, part in parts.items():
            if args.only in (None, name):
                part()
    return 0


def steps(shards: Path, args: argparse.Namespace) -> None:
    """A BYOL step, R2O's at K = 4 and 128 (and with every row through the heads), and the bare loop, taking turns."""
    sections = sections_of(args)
    byol = {"refine": {"clustering": "none", "regions": "image"}}
    every = {"objective": {"rows": "all"}}
    trainers = {
        "byol": Trainer(shards, settings_of(args.batch, 1, **sections, **byol)),
        "r2o_k4": Trainer(shards, settings_of(args.batch, 4, **sections)),
        "r2o_k128": Trainer(shards, settings_of(args.batch, 128, **sections)),
        "all_rows_k128": Trainer(shards, settings_of(args.batch, 128, **sections, **every)),
    }
    bare = Bare(trainers["byol"])
    seconds = best_of(args.rounds, {"bare": bare.step, **{name: t.step for name, t in trainers.items()}})
    base = floor_of(trainers["byol"], refines=False)
    print(
        f"step.byol_vs_bare {seconds['bare'] / seconds['byol']:.3f}   {args.backbone}, {args.batch} images of 224 px, "
        f"{args.precision}: BYOL {seconds['byol']:.3f} s, bare {seconds['bare']:.3f} s; "
        f"{args.batch / seconds['byol']:.1f} images/s, {base * args.batch / seconds['byol'] / 1e12:.2f} TFLOP/s"
    )
    for k in (4, 128):
        name = f"r2o_k{k}"
        floor = floor_of(trainers[name], refines=True) / base
        ratio = seconds[name] / seconds["byol"]
        print(
            f"step.vs_floor_k{k} {ratio / floor:.3f}   R2O/BYOL {ratio:.3f}, floor {floor:.3f} with "
            f"{trainers[name].masks:.1f} valid masks an image; {args.batch / seconds[name]:.1f} images/s"
        )
    print(
        f"step.all_rows_k128 {seconds['all_rows_k128'] / seconds['r2o_k128']:.3f}   every row through the heads against"
        " the valid ones"
    )


def costs(shards: Path, args: argparse.Namespace) -> None:
    """The five operators that a step spends most in, K = 128."""
    trainer = Trainer(shards, settings_of(args.batch, 128, **sections_of(args)))
    trainer.step()
    on_gpu = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiled:
        trainer.step()
        wait()
    spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in profiled.key_averages()}
    whole = sum(spent.values())
    largest = sorted(spent, key=lambda key: -spent[key])[:5]
    print("largest costs of a step, K = 128: " + ", ".join(f"{key} {spent[key] / whole:.1%}" for key in largest))


def sizes(shards: Path, args: argparse.Namespace, batch: int, compiled: bool) -> None:
    """Images a second, share of the peak and memory at one local batch, K = 128."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(shards, settings_of(batch, 128, **sections_of(args)))
    if compiled:
        compile_backbones(trainer.model)
    seconds = best_of(args.rounds, {"step": trainer.step})["step"]
    if compiled:  # operations are counted on modules that are not
        trainer = Trainer(shards, settings_of(batch, 128, **sections_of(args)))
        trainer.step()
    rate = floor_of(trainer, refines=True) * batch / seconds
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    peak = next((value for key, value in PEAK.items() if key in name), None)
    print(
        f"step of {batch:4} images{', compiled' if compiled else '':10} {batch / seconds:8.1f} images/s  "
        f"{rate / 1e12:.2f} TFLOP/s{f' ({rate / peak:.1%} of peak)' if peak else ''}"
        + (f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if DEVICE.type == "cuda" else "")
    )


if __name__ == "__main__":
    sys.exit(main())
