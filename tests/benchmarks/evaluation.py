"""`make bench-eval`: seconds by phase of the frozen protocols, and exact kNN against bare products of equal size.

Features and labels are generated, of the size of VOC2012_small under a ResNet-18 at 224 pixels: 3,131 images to fit on
and 223 to score, 7 × 7 cells of 512 channels. What the features say does not matter for kNN; for L-BFGS they are
correlated, and tell classes of unequal frequency more or less.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.turns import DEVICE, best_of
from train.config.frozen import FROZEN_PROTOCOLS, EvalFrozenSettings
from train.evals.datasets.annotated import Annotated, DataSet
from train.evals.frozen.numerics.cell_labels import cell_labels, cell_modes
from train.evals.frozen.numerics.neighbours import BANK_ROWS, GPU_BANK_ROWS, PRUNING_DEVICES, QUERIES, nearest
from train.evals.frozen.numerics.rows import TensorRows
from train.evals.frozen.protocol import SplitFeatures, Task

CHANNELS = {"c4": 256, "c5": 512}
STRIDE = {"c4": 16, "c5": 32}
CLASSES, BACKGROUND_SHARE = 21, 0.7
READY = ("linear", "knn", "context")  # protocols that need no image and no model


class GeneratedImages:
    """Rectangles of one class on background, made when they are read."""

    def __init__(self, part: str, count: int) -> None:
        self.part, self.names, self.digest = part, tuple(f"{part}{i}" for i in range(count)), part

    def read(self, index: int) -> Annotated:
        """One of about 224 × 170 pixels."""
        rng = np.random.default_rng([self.part == "val", index])
        height, width = (int(side) for side in rng.integers(150, 225, 2))
        labels = np.zeros((height, width), dtype=np.int16)
        top, left = int(rng.integers(0, height // 2)), int(rng.integers(0, width // 2))
        # Some classes are rare, as in VOC.
        kind = 1 + int(20 * rng.random() ** 2)
        labels[top : top + height // 2, left : left + width // 2] = kind
        image = np.broadcast_to(np.uint8(0), (height, width, 3))
        return Annotated(image, labels=labels, class_id=kind)


def generated_features(images: GeneratedImages, level: str, size: int) -> SplitFeatures:
    """Float16: a mean by class of the cell, and correlated noise."""
    grid, channels = size // STRIDE[level], CHANNELS[level]
    labels = cell_labels(images, size=size, grid=(grid, grid))
    modes = cell_modes(labels.reshape(-1, labels.shape[-1]), num_classes=CLASSES)
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, channels), dtype=np.float32)
    mixing = rng.standard_normal((channels, channels), dtype=np.float32) * np.geomspace(1, 0.05, channels)[:, None]
    mixing = mixing.astype(np.float32) / np.float32(2)
    cells = np.empty((len(modes), channels), dtype=np.float16)
    noise = np.random.default_rng([1, images.part == "val"])
    for start in range(0, len(modes), 4096):
        part = modes[start : start + 4096]
        cells[start : start + 4096] = means[part] + noise.standard_normal((len(part), channels), np.float32) @ mixing
    maps = cells.reshape(len(images.names), grid, grid, channels)
    return SplitFeatures(images=images, cells=maps, pooled=maps.mean((1, 2), dtype=np.float32))


def neighbours_rate(*, bank_rows: int, queries: int, rounds: int) -> None:
    """Exact kNN, k = 30, against `queries @ bank.T` in the same tiles, taking turns."""
    generator = torch.Generator().manual_seed(0)
    bank, asked = (torch.randn(n, 512, generator=generator).to(DEVICE) for n in (bank_rows, queries))
    tile = BANK_ROWS if DEVICE.type in PRUNING_DEVICES else GPU_BANK_ROWS
    buffer = torch.empty(QUERIES, tile, device=DEVICE)

    def products() -> None:
        for first in range(0, bank_rows, tile):
            for start in range(0, queries, QUERIES):
                left, right = asked[start : start + QUERIES], bank[first : first + tile]
                torch.mm(left, right.T, out=buffer[: len(left), : len(right)])

    actions: dict[str, Any] = {"products": products}
    for distance in ("cosine", "l2"):
        actions[distance] = lambda d=distance: nearest(TensorRows(asked), TensorRows(bank), k=30, distance=d)
    seconds = best_of(rounds, actions)
    told = "  ".join(f"knn.rate_{name} {seconds['products'] / seconds[name]:.2f}" for name in ("cosine", "l2"))
    print(
        f"{told}   {queries:,} queries, bank of {bank_rows:,} × 512, k = 30: products {seconds['products']:.2f} s, "
        f"cosine {seconds['cosine']:.2f} s, L2 {seconds['l2']:.2f} s; best of {rounds}"
    )


def protocol_seconds(name: str, *, train: int, val: int) -> float:
    """One protocol with its default settings, on generated features."""
    lists = {"train": GeneratedImages("train", train), "val": GeneratedImages("val", val)}
    settings = getattr(EvalFrozenSettings(), name)
    made = {part: generated_features(images, settings.level, settings.size) for part, images in lists.items()}
    data = DataSet(
        layout="generated",
        root=Path(),
        classes=tuple(f"class {i}" for i in range(CLASSES)),
        background=0,
        has=frozenset({"labels", "class_id"}),
        train_has=frozenset({"labels", "class_id"}),
        val=lists["val"],
        train=lists["train"],
    )

    def load_model() -> Any:
        raise RuntimeError("generated features have no model")

    task: Task[Any] = Task(
        data=data,
        settings=settings,
        features=lambda part, level, size: made[part],
        seed=0,
        device=DEVICE,
        load_model=load_model,
    )
    found = importlib.import_module(f"train.evals.frozen.protocols.{name}").score(task)
    headline = FROZEN_PROTOCOLS[name].headline
    by_phase = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in task.clock.seconds.items())
    total = sum(task.clock.seconds.values())
    kept = {key: value for key, value in found.chosen.items() if not isinstance(value, dict)}
    print(f"{name}.seconds {total:.1f}   {by_phase}; {headline} {found.scores[headline]:.4f}, {kept}")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison with bare products; 0: none")
    parser.add_argument("--train", type=int, default=3131, help="images to fit on")
    parser.add_argument("--val", type=int, default=223, help="images to score")
    parser.add_argument("--protocols", nargs="*", default=READY, choices=sorted(FROZEN_PROTOCOLS))
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if args.rounds:
        neighbours_rate(bank_rows=args.train * 49, queries=args.val * 49, rounds=args.rounds)
    total = sum(protocol_seconds(name, train=args.train, val=args.val) for name in args.protocols)
    print(f"eval.seconds {total:.1f}   {args.train} and {args.val} images, {', '.join(args.protocols)}")


if __name__ == "__main__":
    main()
