"""The part `profile`: which kernels a step spends its time in, and a trace."""

from __future__ import annotations

import gzip
import time
from collections import defaultdict
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile

from tests.gpu.device import CUDA, wait
from tests.gpu.places import DRY, OUT
from tests.gpu.telling import tell
from tests.gpu.trainer import Trainer, settings_of

KINDS = (  # the first whose mark is in a kernel's name
    ("augmentation and copies", ("index_copy", "Memcpy")),
    ("convolution", ("conv", "xmma", "implicit", "fprop", "dgrad", "wgrad", "cudnn", "nhwc")),
    ("batch norm", ("batch_norm", "batchnorm", "bn_")),
    ("matrix products", ("gemm", "gemv", "cutlass", "splitK")),
    ("pooling", ("pool",)),
    ("multi tensor", ("multi_tensor",)),
    ("sort, search, scan, topk", ("sort", "search", "scan", "topk", "radix", "bitonic", "gatherTopK")),
    ("reduction", ("reduce",)),
    ("elementwise", ("elementwise", "vectorized", "CatArray", "index", "scatter", "gather", "fill")),
)
NOT_KERNELS = ("aten::", "autograd::", "Optimizer", "ProfilerStep")
RUNTIME = ("cudaLaunch", "cudaStreamS", "cudaEventS", "cudaDeviceS", "cudaMem", "cudaHost", "cudaFree", "cuLaunch")


class Kernel(NamedTuple):
    """Of one step."""

    name: str
    us: float
    times: float


def main() -> None:
    batch, steps = (16, 1) if DRY else (128, 10)
    trainer = Trainer(settings_of(batch, 128 if CUDA else 16))
    for _ in range(4):
        trainer.step()
    bare = seconds_of_a_step(trainer, steps)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profile(activities=activities, acc_events=True) as p:
        for _ in range(steps):
            trainer.step()
        wait()
    events = p.key_averages()
    if not CUDA:
        tell("profile", cpu_ms=round(sum(e.self_cpu_time_total for e in events) / 1e3 / steps, 1))
        return
    kernels = [Kernel(e.key, e.self_device_time_total / steps, e.count / steps) for e in events if is_kernel(e)]
    total = sum(kernel.us for kernel in kernels)
    runtime = {e.key: round(e.count / steps, 1) for e in events if e.key.startswith(RUNTIME) and e.count >= steps}
    tell(
        "profile",
        batch=batch,
        step_ms=round(bare * 1e3, 2),
        device_ms=round(total / 1e3, 2),
        device_busy=round(total / 1e6 / bare, 3),
        kernels=round(sum(kernel.times for kernel in kernels)),
        runtime_calls=runtime,
        by_kind_ms=by_kind(kernels),
    )
    for kernel in sorted(kernels, key=lambda kernel: -kernel.us)[:20]:
        tell("kernel", ms=round(kernel.us / 1e3, 3), count=round(kernel.times, 1), name=kernel.name[:110])
    write_trace(trainer)


def seconds_of_a_step(trainer: Trainer, steps: int) -> float:
    wait()
    began = time.perf_counter()
    for _ in range(steps):
        trainer.step()
    wait()
    return (time.perf_counter() - began) / steps


def is_kernel(event: Any) -> bool:
    on_device = str(getattr(event, "device_type", "CUDA")).endswith("CUDA")
    return event.self_device_time_total > 0 and on_device and not event.key.startswith(NOT_KERNELS)


def by_kind(kernels: list[Kernel]) -> dict[str, float]:
    """Milliseconds by kind, the largest first."""
    spent: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        kind = next((kind for kind, marks in KINDS if any(mark in kernel.name for mark in marks)), "other")
        spent[kind] += kernel.us / 1e3
    return {kind: round(spent[kind], 2) for kind in sorted(spent, key=lambda kind: -spent[kind])}


def write_trace(trainer: Trainer) -> None:
    """One step for chrome://tracing."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as p:
        trainer.step()
        wait()
    path = OUT / "trace.json"
    p.export_chrome_trace(str(path))
    with gzip.open(OUT / "trace.json.gz", "wb") as file:
        file.write(path.read_bytes())
    path.unlink()


if __name__ == "__main__":
    main()
