"""Partitions of an image that know nothing of it: what segments of a backbone must be better than.

Each is a label map of a feature grid, so that it is as coarse as the segments that it stands beside.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Integer

from train.r2o.masks import grid_label_map, grid_of

GridSize = tuple[int, int]


def cells_of(size: GridSize) -> Integer[np.ndarray, "h w"]:
    """Every cell of a grid (high, wide) as a segment of its own."""
    return np.arange(size[0] * size[1]).reshape(size)


def equal_rectangles(count: int, size: GridSize) -> Integer[np.ndarray, "h w"]:
    """The squarest grid of at most `count` rectangles, as equal as the cells allow."""
    rows, columns = grid_of(count)
    found: np.ndarray = grid_label_map(rows, columns, like=torch.zeros(1, *size, dtype=torch.int64))[0].numpy()
    return found


def random_partition(count: int, size: GridSize, rng: np.random.Generator) -> Integer[np.ndarray, "h w"]:
    """A Voronoi partition: each cell belongs to the nearest of `count` points, even in the unit square.

    Parts are compact; a point that is nearest to no cell's centre has none.
    """
    points = rng.random((count, 2))
    rows, columns = ((np.arange(cells) + 0.5) / cells for cells in size)
    distance = (rows[:, None, None] - points[:, 0]) ** 2 + (columns[None, :, None] - points[:, 1]) ** 2
    nearest: np.ndarray = distance.argmin(2)
    return nearest


def centre_partition(size: GridSize) -> Integer[np.ndarray, "h w"]:
    """Five parts: the box of half the height and width in the middle (id 0), and what is above, right, below, left.

    Diagonals of the image cut the rest into those four.
    """
    rows, columns = ((np.arange(cells) + 0.5) / cells - 0.5 for cells in size)
    down, right = rows[:, None], columns[None, :]
    inside = (np.abs(down) < 0.25) & (np.abs(right) < 0.25)
    vertical = np.abs(down) >= np.abs(right)
    side = np.where(vertical, np.where(down < 0, 1, 3), np.where(right > 0, 2, 4))
    parts: np.ndarray = np.where(inside, 0, side)
    return parts
