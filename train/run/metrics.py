"""Figures of a run: collapse monitors, memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def feature_std(features: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Spread of L2-normalised rows: standard deviation over rows, mean over dimensions, times √d.

    1 for directions spread evenly over the sphere, 0 when all rows agree (collapse) or there are fewer than two.
    """
    if features.shape[0] < 2:
        return features.new_zeros((), dtype=torch.float32)
    spread: Tensor = F.normalize(features.float(), dim=1).std(0).mean() * features.shape[1] ** 0.5
    return spread


def memory_gb(device: torch.device) -> float:
    """Memory of this rank in 1e9 bytes: on CUDA the most allocated since this was last asked, else what is resident."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 1e9
    resident = Path("/proc/self/statm")
    if resident.exists():
        return int(resident.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of the peak, which is all that others tell
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
