"""The device that is tried, and its clock."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.gpu.places import DRY

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if CUDA else torch.device("cpu")
CPU = torch.device("cpu")


def wait() -> None:
    """Until the device has done all that was asked of it."""
    if CUDA:
        torch.cuda.synchronize()


def timed(action: Callable[[], object], *, warm: int = 2, times: int = 7) -> float:
    """Median seconds, waited for on both sides."""
    if DRY:
        warm, times = 0, 1
    for _ in range(warm):
        action()
    found = []
    for _ in range(times):
        wait()
        began = time.perf_counter()
        action()
        wait()
        found.append(time.perf_counter() - began)
    return sorted(found)[len(found) // 2]


@contextmanager
def host_may_not_wait() -> Iterator[None]:
    """Whatever makes the host wait for the device is an error."""
    if CUDA:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def host_waits() -> Iterator[Counter[str]]:
    """Counts the block's waits of the host for the device, by line."""
    where: Counter[str] = Counter()
    if CUDA:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield where
    finally:
        if CUDA:
            torch.cuda.set_sync_debug_mode("default")
    where.update(f"{Path(w.filename).name}:{w.lineno}" for w in said if "synchroniz" in str(w.message))


@contextmanager
def matmul_in_tf32(allowed: bool = True) -> Iterator[None]:
    """Let products of float32 matrices be rounded to TF32 in the block, not after it."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN try its algorithms in the block, not after it."""
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False
