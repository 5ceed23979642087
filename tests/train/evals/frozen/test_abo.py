"""Best overlaps against a loop over masks and objects."""

import numpy as np
import pytest

from train.evals.frozen.abo import best_overlaps


def overlaps_by_hand(masks: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each object in turn, by a loop over all masks."""
    counted, overlaps = labels != 255, []
    for label in sorted(set(labels[counted].tolist()) - {0}):
        thing = labels == label
        found = [counted & (masks == mask) for mask in np.unique(masks)]
        overlaps.append(max((thing & mask).sum() / (thing | mask).sum() for mask in found))
    return overlaps


def test_overlaps_of_drawn_masks() -> None:
    labels = np.zeros((4, 6), np.uint8)
    labels[1:3, 1:5] = 7  # 8 pixels
    refined = np.array([[0, 1, 0]]).repeat(2, 0)  # mask 1 is the 4 × 2 pixels in the middle
    assert best_overlaps(refined, labels).tolist() == [4 / 12]
    labels[0] = labels[3] = 255
    assert best_overlaps(refined, labels).tolist() == [4 / 8]


def test_perfect_masks_overlap_wholly_and_one_mask_by_the_share_of_area() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.uint8)
    assert best_overlaps(labels.astype(int), labels).tolist() == [1, 1, 1]
    whole = best_overlaps(np.zeros((3, 3), int), labels)
    np.testing.assert_allclose(whole, [(labels == label).mean() for label in (1, 2, 3)])
    assert best_overlaps(np.zeros((3, 3), int), np.zeros((9, 7), np.uint8)).shape == (0,)
    assert best_overlaps(np.zeros((3, 3), int), np.full((9, 7), 255, np.uint8)).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_equal_a_loop_over_masks_and_objects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    refined = rng.integers(0, 5, (3, 4))
    labels = rng.choice(np.array([0, 1, 2, 20, 254, 255], np.uint8), (12, 20))
    expected = overlaps_by_hand(refined.repeat(4, 0).repeat(5, 1), labels)
    np.testing.assert_allclose(best_overlaps(refined, labels), expected)
