"""Partitions that know nothing of the image: drawn by hand, and against a loop."""

import numpy as np
import pytest

from train.evals.frozen.numerics.partitions import cells_of, centre_partition, equal_rectangles, random_partition


def test_equal_rectangles_are_the_squarest_grid() -> None:
    assert equal_rectangles(4, (2, 4)).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert equal_rectangles(1, (2, 2)).tolist() == [[0, 0], [0, 0]]
    assert len(np.unique(equal_rectangles(7, (14, 14)))) == 6  # 2 × 3
    assert np.bincount(equal_rectangles(4, (14, 14)).ravel()).tolist() == [49] * 4


def test_cells_are_all_different() -> None:
    assert cells_of((2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("seed", range(3))
def test_random_parts_are_those_of_the_nearest_point(seed: int) -> None:
    found = random_partition(4, (5, 7), np.random.default_rng(seed))
    points = np.random.default_rng(seed).random((4, 2))
    for y in range(5):
        for x in range(7):
            away = [(py - (y + 0.5) / 5) ** 2 + (px - (x + 0.5) / 7) ** 2 for py, px in points]
            assert found[y, x] == np.argmin(away)


def test_the_partition_around_the_centre() -> None:
    assert centre_partition((8, 8)).tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 1],
        [4, 1, 1, 1, 1, 1, 1, 2],
        [4, 4, 0, 0, 0, 0, 2, 2],
        [4, 4, 0, 0, 0, 0, 2, 2],
        [4, 4, 0, 0, 0, 0, 2, 2],
        [4, 4, 0, 0, 0, 0, 2, 2],
        [4, 3, 3, 3, 3, 3, 3, 2],
        [3, 3, 3, 3, 3, 3, 3, 3],
    ]
    assert (centre_partition((64, 64)) == 0).mean() == 1 / 4
