"""The part `kmeans` of tests.benchmarks.step: K-means of one clustering group against a loop and scikit-learn."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.trainer import make_local_batch, settings_of
from tests.benchmarks.turns import DEVICE, best_of
from train.models.backbone import build_backbone
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.refine import pool_regions

CONVERGED = 100  # Lloyd iterations
CLOSE = 1.001  # of the inertia at which the loop converges
SEEDS = 5


def region_rows(shards: Path) -> Tensor:
    """Regions of 32 photographs in ResNet-50's C4, L2-normalised: (regions, 1024)."""
    settings = settings_of()
    batch = make_local_batch(shards, settings).batch
    net = build_backbone("resnet50", seed=0).to(DEVICE).train()
    with torch.no_grad():
        regions = pool_regions(net.forward_c4(batch.images), batch.superpixels, max_superpixels=128)
    return F.normalize(regions.features[regions.valid], dim=1)


def loop_kmeans(rows: Tensor, num_clusters: int, *, iterations: int, seed: int = 0) -> list[float]:
    """K-means as one writes it first: random rows as centres, then a loop over clusters; inertia by iteration."""
    generator = torch.Generator().manual_seed(seed)
    centres = rows[torch.randperm(len(rows), generator=generator)[:num_clusters].to(rows.device)]
    inertia: list[float] = []
    for _ in range(iterations):
        distance, assignment = torch.cdist(rows, centres).min(1)
        inertia.append(float(distance.square().sum()))
        for k in range(num_clusters):
            members = rows[assignment == k]
            if len(members):
                centres[k] = members.mean(0)
    return inertia


def clustering(shards: Path, rounds: int) -> None:
    """K-means of one group. The mark is the inertia at which the loop converges (median of some seeds): ours and the
    loop run as many iterations as bring their median to within 0.1 % of it; scikit-learn stops by itself.
    """
    rows = region_rows(shards)
    grouped, valid = rows[None], torch.ones(1, len(rows), dtype=torch.bool, device=DEVICE)
    on_host = rows.cpu().numpy()

    def ours(k: int, iterations: int, seed: int = 0) -> Tensor:
        uniforms = seeding_uniforms(k, seed=seed, step=0, first_group=0, num_groups=1).to(DEVICE)
        return kmeans(grouped, valid, uniforms=uniforms, iterations=iterations).inertia

    def theirs(k: int, seed: int = 0) -> float:
        return float(KMeans(k, n_init=1, algorithm="lloyd", random_state=seed).fit(on_host).inertia_)

    def median_of(inertia: Callable[[int], float]) -> float:
        return statistics.median(inertia(seed) for seed in range(SEEDS))

    for k in (4, 32, 128):
        loops = [loop_kmeans(rows, k, iterations=CONVERGED, seed=seed) for seed in range(SEEDS)]
        by_iteration = [statistics.median(values) for values in zip(*loops, strict=True)]
        mark = CLOSE * by_iteration[-1]
        loop_needed = next(i for i, value in enumerate(by_iteration, start=1) if value <= mark)
        needed = next(
            (i for i in range(CONVERGED) if median_of(lambda seed, i=i, k=k: float(ours(k, i, seed))) <= mark),
            CONVERGED,
        )
        centres = rows[:k].T.contiguous()
        seconds = best_of(
            rounds,
            {
                "ours": lambda n=needed, k=k: ours(k, n),
                "loop": lambda n=loop_needed, k=k: loop_kmeans(rows, k, iterations=n),
                "sklearn": lambda k=k: theirs(k),
                "ours, 10 iterations": lambda k=k: ours(k, 10),
                "product": lambda c=centres: rows @ c,
            },
        )
        inertia = {
            "ours": median_of(lambda seed, k=k, n=needed: float(ours(k, n, seed))),
            "loop": by_iteration[loop_needed - 1],
            "sklearn": median_of(lambda seed, k=k: theirs(k, seed)),
            "ours, 10 iterations": median_of(lambda seed, k=k: float(ours(k, 10, seed))),
        }
        told = ", ".join(f"{name} {seconds[name] * 1e3:.1f} ms ({inertia[name]:.1f})" for name in inertia)
        print(
            f"kmeans.vs_loop_k{k} {seconds['loop'] / seconds['ours']:.2f}  kmeans.vs_sklearn_k{k} "
            f"{seconds['sklearn'] / seconds['ours']:.2f}   {len(rows)} rows, {needed} and {loop_needed} iterations to "
            f"{mark:.1f}: {told}; floor {(needed + 1) * seconds['product'] * 1e3:.1f} ms, {needed + 1} products"
        )
    if DEVICE.type == "cuda":
        _clustering_of_eight_groups(rows, rounds)


def _clustering_of_eight_groups(rows: Tensor, rounds: int) -> None:
    """What a local batch of 256 images takes, seeding apart, against the loop over the groups."""
    eight = torch.stack([rows[torch.randperm(len(rows), device=DEVICE)[:3200]] for _ in range(8)])
    uniforms = seeding_uniforms(128, seed=0, step=0, first_group=0, num_groups=8).to(DEVICE)
    everything = torch.ones(eight.shape[:2], dtype=torch.bool, device=DEVICE)
    seconds = best_of(
        rounds,
        {
            "seeding": lambda: kmeans(eight, everything, uniforms=uniforms, iterations=0),
            "all": lambda: kmeans(eight, everything, uniforms=uniforms, iterations=10),
            "loop": lambda: [loop_kmeans(group, 128, iterations=10) for group in eight],
        },
    )
    print(
        f"kmeans.gpu_ms {seconds['all'] * 1e3:.2f}   8 groups of 3,200 rows, K = 128, 10 iterations, of which seeding "
        f"{seconds['seeding'] * 1e3:.2f}; kmeans.gpu_vs_loop {seconds['loop'] / seconds['all']:.1f}"
    )
