"""Features and labels of the cells of one list of images, and a part of the images set aside to choose by."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, Int32, Int64

from pipeline.foundation.errors import InputError
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.numerics.cell_labels import cell_histograms, cell_labels
from train.evals.frozen.numerics.rows import CellRows, Standardisation, standardise_on
from train.evals.frozen.protocol import SplitFeatures


class LabelledCells(NamedTuple):
    """Cells image by image, row by row.

    Attributes:
        labels: of the pixels of each cell.
        histograms: pixels of each class in each cell, the UNLABELLED last.
        modes: the most frequent label of each cell, or UNLABELLED.
    """

    features: SplitFeatures
    labels: Int16[np.ndarray, "n h w pixels"]
    histograms: Int32[np.ndarray, "rows bins"]
    modes: Int16[np.ndarray, " rows"]

    @staticmethod
    def of(features: SplitFeatures, *, size: int, num_classes: int) -> LabelledCells:
        """Read the labels of the images whose features these are. `size`: of the images, in pixels."""
        _, height, width, _ = features.cells.shape
        labels = cell_labels(features.images, size=size, grid=(height, width))
        histograms = cell_histograms(labels.reshape(-1, labels.shape[-1]), num_classes=num_classes)
        modes = histograms.argmax(1).astype(np.int16)
        modes[modes == num_classes] = UNLABELLED
        return LabelledCells(features, labels, histograms, modes)

    def cells_of(self, images: Int64[np.ndarray, " images"], *, labelled: bool) -> Int64[np.ndarray, " rows"]:
        """Places of the cells of some images. `labelled`: without those whose mode is UNLABELLED."""
        per_image = self.labels.shape[1] * self.labels.shape[2]
        cells: np.ndarray = (images[:, None] * per_image + np.arange(per_image)).ravel()
        return cells[self.modes[cells] != UNLABELLED] if labelled else cells

    def rows(
        self, cells: Int64[np.ndarray, " rows"], *, device: torch.device, standard: Standardisation | None = None
    ) -> CellRows:
        """Features of some cells."""
        return CellRows(self.features.cells, chosen=cells, device=device, standard=standard)


class SetAside(NamedTuple):
    """Images that classifiers are fitted on while their settings are chosen, and those that they are chosen by."""

    fitted: Int64[np.ndarray, " fitted"]
    chosen_by: Int64[np.ndarray, " chosen_by"]


def set_aside(cells: LabelledCells, *, share: float, seed: int) -> SetAside:
    """A share of the images by a seeded permutation, at least one; both parts in the order of the list.

    Raises:
        InputError: there are too few images, or one part has no labels.
    """
    count = len(cells.labels)
    if count < 2:
        raise InputError(f"train: {count} images; a part is set aside to choose settings by, so take two at least")
    order = np.random.default_rng(seed).permutation(count)
    # A tenth of 30 images is 3, whatever floating point makes of it.
    number = min(max(1, math.floor(count * share + 1e-9)), count - 1)
    parts = SetAside(np.sort(order[number:]), np.sort(order[:number]))
    if not len(cells.cells_of(parts.fitted, labelled=True)):
        raise InputError("train: no image but those set aside to choose settings by has labels; take more images")
    return parts


def standardise_cells(
    cells: LabelledCells, images: Int64[np.ndarray, " images"], *, device: torch.device
) -> Standardisation:
    """Mean and deviation over all cells of some images, labelled or not."""
    return standardise_on(cells.rows(cells.cells_of(images, labelled=False), device=device))
