"""The measures of tests/benchmarks/superpixels.py, by hand on tiny maps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def measures():
    path = Path(__file__).parents[2] / "benchmarks" / "superpixels.py"
    spec = importlib.util.spec_from_file_location("superpixel_measures", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["superpixel_measures"] = module
    spec.loader.exec_module(module)
    return module


TRUTH = np.array([[0, 0, 0, 1, 1, 1]] * 2)


def test_a_map_that_is_the_truth_is_perfect(measures):
    assert measures.boundary_recall(TRUTH, TRUTH) == 1
    assert measures.undersegmentation_error(TRUTH, TRUTH) == 0
    assert measures.accuracy(TRUTH, TRUTH) == 1


def test_a_segment_across_a_border_costs_its_smaller_part(measures):
    label_map = np.array([[0, 0, 1, 1, 2, 2]] * 2)  # the middle one has 2 pixels on each side
    assert measures.undersegmentation_error(label_map, TRUTH) == (2 + 2) / 12
    assert measures.accuracy(label_map, TRUTH) == (4 + 2 + 4) / 12
    askew = np.array([[0, 1, 1, 1, 2, 2]] * 2)  # 4 pixels on one side, 2 on the other
    assert measures.undersegmentation_error(askew, TRUTH) == (2 + 2) / 12
    assert measures.accuracy(askew, TRUTH) == (2 + 4 + 4) / 12


def test_one_segment_for_all(measures):
    whole = np.zeros_like(TRUTH)
    assert measures.boundary_recall(whole, TRUTH) == 0
    assert measures.undersegmentation_error(whole, TRUTH) == 1
    assert measures.accuracy(whole, TRUTH) == 0.5


def test_boundaries_count_within_the_tolerance(measures):
    truth, label_map = (np.zeros((300, 400), int) for _ in range(2))  # diagonal 500: 3.75 pixels
    truth[:, 200:] = 1
    label_map[:150, 203:] = 1  # above 3 pixels off, below nothing
    found = measures.boundary_recall(label_map, truth)
    assert abs(found - 153 / 300) <= 1 / 300  # the map's lower border reaches a little further down
    label_map[:150, 203] = 0
    assert measures.boundary_recall(label_map, truth) < 0.03  # 4 pixels off


def test_a_truth_of_one_region_has_nothing_to_recall(measures):
    assert measures.boundary_recall(TRUTH, np.zeros_like(TRUTH)) == 1
