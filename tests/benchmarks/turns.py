"""What a benchmark compares takes turns on one device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def best_of(rounds: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Least seconds of each, taking turns, after one round to warm up."""
    best = dict.fromkeys(actions, float("inf"))
    for number in range(rounds + 1):
        for name, action in actions.items():
            wait()
            began = time.perf_counter()
            action()
            wait()
            if number:
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def wait() -> None:
    """Until the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
