"""Matching against all permutations, and against SciPy's."""

from itertools import permutations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from train.evals.frozen.numerics.assignment import match_at_least_cost


def total(cost: np.ndarray) -> float:
    pairs = match_at_least_cost(cost)
    assert len(pairs) == min(cost.shape)
    assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)
    assert (np.diff(pairs[:, 0]) > 0).all()
    return float(cost[pairs[:, 0], pairs[:, 1]].sum())


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (3, 6), (6, 3), (1, 5), (5, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_no_permutation_costs_less(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for cost in (rng.normal(size=shape), rng.integers(0, 3, shape).astype(float)):
        wide = cost if shape[0] <= shape[1] else cost.T
        ways = permutations(range(wide.shape[1]), wide.shape[0])
        least = min(sum(wide[row, column] for row, column in enumerate(way)) for way in ways)
        assert total(cost) == pytest.approx(least)


@pytest.mark.parametrize("shape", [(60, 60), (40, 90), (90, 40), (21, 21)])
@pytest.mark.parametrize("seed", range(3))
def test_totals_are_scipy_s(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # real costs, whole ones with many ties, and 1 - IoU with whole rows of nothing
    iou = rng.random(shape) * (rng.random(shape) < 0.2)
    for cost in (rng.normal(size=shape), rng.integers(-4, 5, shape).astype(float), 1 - iou):
        assert total(cost) == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_a_unique_best_matching_is_found() -> None:
    order = np.random.default_rng(0).permutation(30)
    cost = np.ones((30, 30))
    cost[np.arange(30), order] = 0
    assert match_at_least_cost(cost).tolist() == [[row, column] for row, column in enumerate(order)]


def test_nothing_to_match() -> None:
    assert match_at_least_cost(np.zeros((0, 4))).shape == (0, 2)
    assert match_at_least_cost(np.zeros((4, 0))).shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_costs_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        match_at_least_cost(np.array([[1.0, bad], [0.0, 2.0]]))
