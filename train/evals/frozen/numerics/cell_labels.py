"""The labels of every pixel of every cell: label maps brought to the size of the features' input, and cut by cell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int16, Int32

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import resize_labels
from train.evals.datasets.annotated import UNLABELLED, ImageList

ROWS_AT_ONCE = 4096  # of cells whose histograms are made together
READERS = 4  # threads that decode


def cell_labels(images: ImageList, *, size: int, grid: tuple[int, int]) -> Int16[np.ndarray, "n h w pixels"]:
    """Labels of the images at size × size pixels, by cell: entry (i, y, x) holds the pixels of that cell, row by row.

    Args:
        size: of the images when their features were made.
        grid: height and width of the feature maps in cells.

    Returns:
        Classes, or UNLABELLED.

    Raises:
        InputError: cells of this grid are no whole pixels.
    """
    if size % grid[0] or size % grid[1]:
        raise InputError(f"size: {size} pixels do not divide into {grid[0]} × {grid[1]} cells; take a multiple of 32")
    cells = np.empty((len(images.names), *grid, size // grid[0] * (size // grid[1])), dtype=np.int16)

    def read(index: int) -> None:
        labels = images.read(index).labels
        assert labels is not None, "a list whose images have labels"
        cells[index] = cut_into_cells(resize_labels(labels, (size, size)), grid=grid)

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(read, range(len(cells))):
            pass
    return cells


def cut_into_cells(labels: Int16[np.ndarray, "size size"], *, grid: tuple[int, int]) -> Int16[np.ndarray, "h w pixels"]:
    """The pixels of each cell, row by row."""
    tall, wide = labels.shape[0] // grid[0], labels.shape[1] // grid[1]
    return labels.reshape(grid[0], tall, grid[1], wide).swapaxes(1, 2).reshape(*grid, tall * wide)


def join_cells(cells: Int16[np.ndarray, "h w pixels"], *, size: int) -> Int16[np.ndarray, "size size"]:
    """The label map whose cells these are: the inverse of `cut_into_cells`."""
    height, width, _ = cells.shape
    return cells.reshape(height, width, size // height, size // width).swapaxes(1, 2).reshape(size, size)


def cell_histograms(labels: Int16[np.ndarray, "rows pixels"], *, num_classes: int) -> Int32[np.ndarray, "rows bins"]:
    """Pixels of each class in each cell; the last of the `num_classes` + 1 bins counts the UNLABELLED."""
    bins = num_classes + 1
    histograms = np.empty((len(labels), bins), dtype=np.int32)
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part = labels[start : start + ROWS_AT_ONCE]
        ids = np.where(part == UNLABELLED, num_classes, part) + np.arange(len(part))[:, None] * bins
        histograms[start : start + ROWS_AT_ONCE] = np.bincount(ids.ravel(), minlength=len(part) * bins).reshape(
            -1, bins
        )
    return histograms


def cell_modes(labels: Int16[np.ndarray, "rows pixels"], *, num_classes: int) -> Int16[np.ndarray, " rows"]:
    """The most frequent label of each cell; of equally frequent ones the lowest class, UNLABELLED last."""
    modes = np.empty(len(labels), dtype=np.int16)
    for start in range(0, len(labels), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        modes[part] = cell_histograms(labels[part], num_classes=num_classes).argmax(1)
    modes[modes == num_classes] = UNLABELLED
    return modes
