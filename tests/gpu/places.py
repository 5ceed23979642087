"""Where a day reads and writes, as `day.py` tells its parts through the environment."""

from __future__ import annotations

import os
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRY = bool(os.environ.get("DRY"))  # tiny sizes, on a CPU
OUT = Path(os.environ.get("OUT") or ROOT / "runs/gpu-day").absolute()  # results
RUNS = Path(os.environ.get("GPU_DAY_WORK") or OUT) / "runs"  # removed at the day's end
SHARDS = Path(os.environ.get("SHARDS") or OUT / "shards").absolute()
DATA = Path(os.environ.get("DATA") or ROOT.parent / "shared/data")  # photographs
PART = os.environ.get("GPU_DAY_PART", "")  # that this process belongs to
UNTIL = float(os.environ.get("GPU_DAY_UNTIL") or time.monotonic() + 200)  # the part has time, by this machine's clock
CORES = len(os.sched_getaffinity(0))


def shards(name: str = "photos") -> Path:
    """A folder of shards; the generated ones in a dry day."""
    return SHARDS / ("tiny" if DRY else name)
