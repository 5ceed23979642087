"""Label maps whose classes are known, features that tell them more or less, and the task that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from train.config.frozen import ProtocolSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated, DataSet
from train.evals.frozen.protocol import SplitFeatures, Task


class Maps:
    """Label maps as a list of images."""

    digest = ""

    def __init__(self, maps: Sequence[np.ndarray]) -> None:
        self.maps, self.names = list(maps), tuple(str(i) for i in range(len(maps)))

    def read(self, index: int) -> Annotated:
        labels = self.maps[index]
        return Annotated(np.zeros((*labels.shape, 3), np.uint8), labels=labels)


def pure_maps(
    count: int, *, grid: int, shape: tuple[int, int], classes: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The class of each cell, (count, grid, grid), and maps of `shape` (multiples of the grid) that hold them."""
    cells = np.random.default_rng(seed).integers(0, classes, (count, grid, grid)).astype(np.int16)
    tall, wide = shape[0] // grid, shape[1] // grid
    return cells, [cell.repeat(tall, 0).repeat(wide, 1) for cell in cells]


def blob_maps(count: int, *, classes: int, seed: int, void: float = 0.1) -> list[np.ndarray]:
    """Maps of odd sizes: rectangles of classes 1 … on class 0, some pixels UNLABELLED."""
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(count):
        height, width = rng.integers(20, 41, 2)
        labels = np.zeros((height, width), dtype=np.int16)
        for _ in range(2):
            top, left = rng.integers(0, height - 10), rng.integers(0, width - 10)
            labels[top : top + rng.integers(5, 20), left : left + rng.integers(5, 20)] = rng.integers(1, classes)
        labels[rng.random(labels.shape) < void] = UNLABELLED
        maps.append(labels)
    return maps


def make_task(
    settings: ProtocolSettings,
    parts: dict[str, tuple[Sequence[np.ndarray], np.ndarray]],
    *,
    classes: int,
    seed: int = 0,
    background: int | None = 0,
) -> Task[Any]:
    """A task on label maps and features by part: (maps, (n, h, w, c))."""
    lists = {part: Maps(maps) for part, (maps, _) in parts.items()}
    data = DataSet(
        layout="test",
        root=None,  # type: ignore[arg-type]
        classes=tuple(f"class {i}" for i in range(classes)),
        background=background,
        has=frozenset({"labels"}),
        val=lists["val"],
        train=lists["train"],
        train_has=frozenset({"labels"}),
    )

    def features(part: str, level: str, size: int) -> SplitFeatures:
        cells = parts[part][1]
        return SplitFeatures(images=lists[part], cells=cells, pooled=cells.mean((1, 2), dtype=np.float32))

    def load_model() -> Any:
        raise AssertionError("features are all that is needed")

    return Task(
        data=data, settings=settings, features=features, seed=seed, device=torch.device("cpu"), load_model=load_model
    )


def blob_task(settings: ProtocolSettings, *, classes: int = 4, width: int = 8, noise: float = 1.0) -> Task[Any]:
    """24 images to train and 6 to score, 4 × 4 cells of 8 pixels: classes by their share in the cell, and noise.

    One image of each part is all UNLABELLED.
    """
    rng = np.random.default_rng(9)
    means = rng.standard_normal((classes, width)) * 2
    parts = {}
    for part, count in (("train", 24), ("val", 6)):
        maps = blob_maps(count, classes=classes, seed=count)
        maps[3][:] = UNLABELLED
        cells = np.stack([shares_by_loop(squared(labels, size=32), grid=4, classes=classes) for labels in maps])
        features = cells @ means + rng.standard_normal((count, 4, 4, width)) * noise + 0.5
        parts[part] = (maps, features.astype(np.float16))
    return make_task(settings, parts, classes=classes)


def squared(labels: np.ndarray, *, size: int) -> np.ndarray:
    """At size × size: the label under the centre of each pixel."""
    at = [((np.arange(size) + 0.5) * side / size).astype(int) for side in labels.shape]
    square: np.ndarray = labels[np.ix_(*at)]
    return square


def shares_by_loop(square: np.ndarray, *, grid: int, classes: int) -> np.ndarray:
    """Share of each class among the labelled pixels of each cell; 0 where there are none."""
    step = len(square) // grid
    shares = np.zeros((grid, grid, classes))
    for y in range(grid):
        for x in range(grid):
            cell = square[y * step : (y + 1) * step, x * step : (x + 1) * step]
            seen = cell[cell != UNLABELLED]
            if seen.size:
                shares[y, x] = [(seen == c).mean() for c in range(classes)]
    return shares
