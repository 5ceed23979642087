"""Overlaps against loops over sets of pixels; the ceiling of a partition against every union of its parts."""

from itertools import combinations

import numpy as np
import pytest

from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.numerics.overlap import best_overlaps, best_unions, common_pixels, overlap_table


def enlarged(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask at each pixel's centre, one pixel after the other."""
    found = np.empty(size, int)
    for y in range(size[0]):
        for x in range(size[1]):
            found[y, x] = masks[
                (2 * y + 1) * masks.shape[0] // (2 * size[0]), (2 * x + 1) * masks.shape[1] // (2 * size[1])
            ]
    return found


def overlaps_by_hand(masks: np.ndarray, ids: np.ndarray, *, void: int = UNLABELLED) -> list[float]:
    """Of each object in turn, by a loop over all masks at the size of `ids`, as sets of pixels."""
    pixels = [(y, x) for y in range(ids.shape[0]) for x in range(ids.shape[1]) if ids[y, x] != void]
    overlaps = []
    for one in sorted({int(ids[p]) for p in pixels} - {0}):
        thing = {p for p in pixels if ids[p] == one}
        found = [{p for p in pixels if masks[p] == mask} for mask in np.unique(masks)]
        overlaps.append(max(len(thing & mask) / len(thing | mask) for mask in found))
    return overlaps


def best_of(masks: np.ndarray, ids: np.ndarray) -> list[float]:
    return best_overlaps(common_pixels(masks, ids)).tolist()


def test_overlaps_of_drawn_masks() -> None:
    ids = np.zeros((4, 6), np.int16)
    ids[1:3, 1:5] = 7  # 8 pixels
    refined = np.array([[0, 1, 0]]).repeat(2, 0)  # mask 1 is the 4 × 2 pixels in the middle
    assert best_of(refined, ids) == [4 / 12]
    ids[0] = ids[3] = UNLABELLED
    assert best_of(refined, ids) == [4 / 8]
    assert common_pixels(refined, ids).objects.tolist() == [7]


def test_perfect_masks_overlap_wholly_and_one_mask_by_the_share_of_area() -> None:
    ids = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.int16)
    assert best_of(ids.astype(int), ids) == [1, 1, 1]
    np.testing.assert_allclose(best_of(np.zeros((3, 3), int), ids), [(ids == one).mean() for one in (1, 2, 3)])


@pytest.mark.parametrize("ids", [np.zeros((9, 7), np.int16), np.full((9, 7), UNLABELLED, np.int16)])
def test_without_objects_there_are_no_overlaps(ids: np.ndarray) -> None:
    common = common_pixels(np.arange(9).reshape(3, 3), ids)
    assert best_overlaps(common).shape == best_unions(common).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [(12, 20), (13, 7), (1, 1), (40, 1)])
def test_overlaps_equal_a_loop_over_masks_and_objects(seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 5, (3, 4))
    ids = rng.choice(np.array([0, 1, 2, 20, 300, UNLABELLED], np.int16), size)
    np.testing.assert_allclose(best_of(masks, ids), overlaps_by_hand(enlarged(masks, size), ids))
    names = rng.permutation(9)
    np.testing.assert_allclose(best_of(names[masks], ids), best_of(masks, ids))


def test_many_segments_and_objects_do_not_overflow() -> None:
    ids = np.full((300, 300), UNLABELLED - 1, np.int16)
    ids[0, 0] = 1
    segments = np.arange(300 * 300).reshape(300, 300)
    common = common_pixels(segments, ids)
    assert best_overlaps(common).tolist() == [1, 1 / (300 * 300 - 1)]
    assert best_unions(common).tolist() == [1, 1]


def test_the_table_is_of_every_pair() -> None:
    ids = np.array([[1, 1, 2, 0]], np.int16)
    table = overlap_table(common_pixels(np.array([[0, 1, 1, 1]]), ids))
    np.testing.assert_allclose(table, [[1 / 2, 1 / 4], [0, 1 / 3]])


@pytest.mark.parametrize("seed", range(6))
def test_the_best_union_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.arange(6).reshape(2, 3)
    ids = rng.choice(np.array([0, 1, 2, UNLABELLED], np.int16), (7, 8), p=(0.4, 0.3, 0.2, 0.1))
    large, counted = enlarged(cells, ids.shape), ids != UNLABELLED
    expected = []
    for one in (1, 2):
        thing = ids == one
        unions = [np.isin(large, chosen) & counted for n in range(1, 7) for chosen in combinations(range(6), n)]
        expected.append(max((thing & union).sum() / (thing | union).sum() for union in unions))
    found = best_unions(common_pixels(cells, ids))
    np.testing.assert_allclose(found, expected)
    assert (found >= best_overlaps(common_pixels(rng.integers(0, 3, 6)[cells], ids)) - 1e-12).all()
