"""Labels by cell against Pillow, and against loops over cells and pixels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import resize_labels
from train.evals.datasets.annotated import UNLABELLED, Annotated
from train.evals.frozen.numerics.cell_labels import (
    cell_histograms,
    cell_labels,
    cell_modes,
    cut_into_cells,
    join_cells,
)


class Maps:
    """Label maps as a list of images."""

    digest = ""

    def __init__(self, maps: list[np.ndarray]) -> None:
        self.maps, self.names = maps, tuple(str(i) for i in range(len(maps)))

    def read(self, index: int) -> Annotated:
        labels = self.maps[index]
        return Annotated(np.zeros((*labels.shape, 3), np.uint8), labels=labels)


def random_labels(shape: tuple[int, ...], *, classes: int = 5, void: float = 0.2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < void, UNLABELLED, rng.integers(0, classes, shape)).astype(np.int16)


@pytest.mark.parametrize(
    ("old", "new"), [((7, 11), (224, 224)), ((375, 500), (224, 96)), ((333, 1), (32, 64)), ((5, 5), (5, 5))]
)
def test_nearest_is_pillows(old: tuple[int, int], new: tuple[int, int]) -> None:
    labels = np.random.default_rng(0).integers(0, 256, old).astype(np.int16)
    expected = Image.fromarray(labels.astype(np.uint8)).resize(new[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_labels(labels, new), np.asarray(expected))


def test_every_cell_holds_its_pixels() -> None:
    maps = [random_labels((40, 30), seed=1), random_labels((6, 9), seed=2)]
    cells = cell_labels(Maps(maps), size=12, grid=(3, 4))
    assert cells.dtype == np.int16
    assert cells.shape == (2, 3, 4, 12)
    for i, labels in enumerate(maps):
        square = resize_labels(labels, (12, 12))
        for y in range(3):
            for x in range(4):
                block = square[y * 4 : (y + 1) * 4, x * 3 : (x + 1) * 3]
                np.testing.assert_array_equal(cells[i, y, x], block.ravel())
        np.testing.assert_array_equal(join_cells(cells[i], size=12), square)
        np.testing.assert_array_equal(cut_into_cells(square, grid=(3, 4)), cells[i])
    assert (cells == UNLABELLED).any()


def test_cells_of_no_whole_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="size: 12 pixels do not divide into 5 × 4 cells"):
        cell_labels(Maps([random_labels((4, 4))]), size=12, grid=(5, 4))


def test_histograms_and_modes_against_counting() -> None:
    labels = random_labels((5000, 9), classes=4, void=0.3)
    labels[17] = UNLABELLED
    histograms, modes = cell_histograms(labels, num_classes=6), cell_modes(labels, num_classes=6)
    for row, histogram, mode in zip(labels.tolist(), histograms.tolist(), modes.tolist(), strict=True):
        count = Counter(row)
        assert histogram == [*(count[c] for c in range(6)), count[UNLABELLED]]
        assert mode == min(count, key=lambda label: (-count[label], label))
    assert modes[17] == UNLABELLED
