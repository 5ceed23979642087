"""What a run tells of itself: collapse monitors and the JSONL log."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts.files import write_atomic

LOG_NAME = "log.jsonl"


def feature_std(features: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Spread of L2-normalised rows: standard deviation over rows, mean over dimensions, times √d.

    1 for directions spread evenly over the sphere, 0 when all rows agree (collapse) or there are fewer than two.
    """
    if features.shape[0] < 2:
        return features.new_zeros((), dtype=torch.float32)
    return F.normalize(features.float(), dim=1).std(0).mean() * features.shape[1] ** 0.5


class RunLog:
    """One JSON object a line. A resumed run drops what lies after the step from which it goes on."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        self._path = run / LOG_NAME
        kept = [line for line in read_log(run) if int(line["step"]) < first_step]
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, **values: float) -> None:
        """Append one record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read_log(run: Path) -> list[dict[str, float]]:
    """The whole records of a run's log; a last line that a kill cut short is not one."""
    path = run / LOG_NAME
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
