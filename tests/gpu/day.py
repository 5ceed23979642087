"""`make gpu-day`: everything that must be seen on a GPU, in one command of less than ten minutes.

python -m tests.gpu.day [--out FOLDER]      FOLDER is by default runs/gpu-day
    results.jsonl, log.txt, summary.txt; benchmarks.md, for docs/benchmarks.md; learn.tgz, the runs without weights

Environment: BUDGET=530 seconds in all; DRY=1: tiny sizes, on a CPU; OUT: as --out; PARTS="env ops …": only these;
DATA: folder of photographs; SHARDS: folder with tiny, photos and nette made before.
What is right or wrong runs side by side first, when nothing is timed; what is timed runs alone afterwards.
The last part, learning, has what is left of BUDGET, and no less than 0.3 of it: with a larger BUDGET it learns longer.
A dry day times nothing: as many parts run at once as there are cores, within DRY_BUDGET seconds.
The exit code is 1 where a check failed or a part ended badly, and 2 where the day cannot begin.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu.parts import Day, Part
from tests.gpu.places import CORES, ROOT

BUDGET, DRY_BUDGET = 530.0, 230.0  # seconds


def module(name: str, *arguments: str) -> tuple[str, ...]:
    return ("-m", f"tests.gpu.{name}", *arguments)


MAKING = Part("shards", module("make_shards"), most=60, least=10)
# What takes all that is left comes last. What the aims are read from comes before the rest.
STAGES: tuple[tuple[Part, ...], ...] = (
    (Part("env", module("env"), most=30, least=10),),
    (
        Part("pytest", module("marked_tests"), most=90, least=20),
        Part("ops", module("ops"), most=90, least=20, reads="photos"),
        Part("smoke", module("smoke"), most=90, least=30, reads="tiny"),
        Part("ddp2", module("ddp2"), most=75, least=20, reads="photos"),
        Part("warmcompile", module("compiled", "warm"), most=90, least=60, reads="photos", dry=False),
    ),
    (Part("bench", module("bench"), most=110, least=30, reads="photos"),),
    (Part("compile", module("compiled"), most=75, least=30, reads="photos"),),
    (Part("stream", module("stream"), most=70, least=30, reads="photos"),),
    (Part("nccl", module("nccl"), most=60, least=30, reads="tiny", dry=False, gpus=2),),
    (Part("profile", module("profiled"), most=30, least=20, reads="photos"),),
    (Part("input", module("input_alone"), most=30, least=15, reads="photos"),),
    (Part("learn", module("learn"), most=math.inf, least=60, reads="nette"),),
)
LEARNING = 0.3  # of the budget is kept for the last stage, whatever the others take


def main(argv: Sequence[str] | None = None) -> int:
    """The day; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.day", description="Everything to be seen on a GPU.")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "runs/gpu-day"))
    out: Path = parser.parse_args(argv).out.absolute()
    dry, given, wanted = bool(os.environ.get("DRY")), os.environ.get("SHARDS"), os.environ.get("PARTS", "").split()
    names = [part.name for stage in STAGES for part in stage if part.dry or not dry]
    if unknown := set(wanted) - {*names, "all"}:
        return refused(f"no part is called {', '.join(unknown)}; there are {', '.join(names)}")
    if ROOT.is_relative_to(out):
        return refused(f"results do not go to {out}, which holds the project")
    gpus = 0 if dry else num_gpus()
    if not dry and not gpus:
        return refused("no CUDA device; DRY=1 runs everything at tiny sizes on a CPU")
    chosen = wanted if wanted and "all" not in wanted else names
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no part outlives the day
    shards = Path(given).absolute() if given else out / "shards"
    budget = float(os.environ.get("BUDGET") or (DRY_BUDGET if dry else BUDGET))
    with Day(out=out, shards=shards, budget=budget, dry=dry, gpus=gpus) as day:
        run(day, [[part for part in stage if part.name in chosen] for stage in STAGES], makes_shards=not given)
        return day.end()


def run(day: Day, stages: Sequence[Sequence[Part]], *, makes_shards: bool) -> None:
    """Stage after stage; all of them in one in a dry day."""
    parts = [part for stage in stages for part in stage]
    if makes_shards and any(part.reads for part in parts):
        day.side_by_side([MAKING])
    if day.dry:
        day.side_by_side(parts, at_once=max(2, CORES))
        return
    *others, last = stages
    kept = LEARNING * day.budget if last else 0.0
    for stage in others:
        day.side_by_side(stage, kept=kept)
    day.side_by_side(last)


def refused(why: str) -> int:
    print(f"gpu-day: {why}", file=sys.stderr)
    return 2


def num_gpus() -> int:
    """Asked of a process of its own: this one stays light, and holds no device."""
    program = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    return int(done.stdout) if done.returncode == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
