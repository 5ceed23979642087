"""`make bench`: speed as ratios to a reference measured in the same run. Run it on a machine that does nothing else."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch
from sklearn.cluster import KMeans
from torch.nn import functional as F

from train.r2o.kmeans import kmeans, seeding_uniforms

REPEATS = 5


def best_seconds(function: Callable[[], object]) -> float:
    """The least of some repetitions, after one to warm up."""
    function()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def report(name: str, ours: float, reference: float, note: str) -> None:
    """One line: how many times faster than the reference."""
    print(
        f"{name:24} {reference / ours:6.2f}×   ours {ours * 1e3:8.1f} ms, reference {reference * 1e3:8.1f} ms   {note}"
    )


def kmeans_against_scikit_learn() -> None:
    """One group of 32 images × 100 regions of ResNet-50's C4 width, as one step of the paper clusters it."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 1024, generator=generator)
    rows = centres[torch.randint(0, 60, (3200,), generator=generator)] + torch.randn(3200, 1024, generator=generator)
    rows = F.normalize(rows, dim=1)[None]
    valid = torch.ones(1, 3200, dtype=torch.bool)
    for k in (4, 32, 128):
        uniforms = seeding_uniforms(k, seed=0, step=0, first_group=0, num_groups=1)
        result = kmeans(rows, valid, uniforms=uniforms, iterations=10)
        reference = KMeans(k, n_init=1, algorithm="lloyd", random_state=0).fit(rows[0])
        report(
            f"kmeans.vs_sklearn_k{k}",
            best_seconds(lambda u=uniforms: kmeans(rows, valid, uniforms=u, iterations=10)),
            best_seconds(lambda k=k: KMeans(k, n_init=1, algorithm="lloyd", random_state=0).fit(rows[0])),
            f"inertia {result.inertia.item():.1f} against {reference.inertia_:.1f} ({reference.n_iter_} iterations)",
        )


if __name__ == "__main__":
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, best of {REPEATS}")
    kmeans_against_scikit_learn()
