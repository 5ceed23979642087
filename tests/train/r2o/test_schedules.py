"""Hand-computed tables: first, last, last + 1, and the values that the paper shows."""

import math

import pytest

from train.config.batches import learning_rate_at
from train.r2o.schedules import num_clusters_at, target_ema_at

PAPER = {"schedule": "quarter_cosine", "initial": 128, "final": 4, "hold_epochs": 40, "total_epochs": 300}


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 128), (39, 128), (40, 128), (100, 119), (200, 74), (299, 4), (300, 4), (301, 4)]
)
def test_k_of_the_paper(epoch: int, expected: int) -> None:
    assert num_clusters_at(epoch, **PAPER) == expected


@pytest.mark.parametrize(("epoch", "expected"), [(0, 128), (1, 126), (50, 66), (99, 5), (100, 4), (101, 4)])
def test_k_linear_over_100_epochs(epoch: int, expected: int) -> None:
    # 128 - 1.24·t, truncated
    linear = {"schedule": "linear", "initial": 128, "final": 4, "hold_epochs": 0, "total_epochs": 100}
    assert num_clusters_at(epoch, **linear) == expected


def test_k_constant() -> None:
    constant = {"schedule": "constant", "initial": 64, "final": 4, "hold_epochs": 0, "total_epochs": 100}
    assert {num_clusters_at(t, **constant) for t in range(102)} == {64}


def test_k_falls_monotonically_to_its_final_value() -> None:
    values = [num_clusters_at(t, **PAPER) for t in range(301)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (468, 2.4),  # half of the warm-up
        (936, 4.8),  # its end
        (936 + (93_600 - 936) // 2, 2.4),  # half of the cosine
        (936 + (93_600 - 936) // 4, 4.8 * 0.5 * (1 + math.sqrt(0.5))),
        (93_600, 0.0),
        (93_601, 0.0),
    ],
)
def test_learning_rate_of_the_paper(step: int, expected: float) -> None:
    lr = learning_rate_at(step, peak_lr=4.8, warmup_steps=936, total_steps=93_600)
    assert lr == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.99), (50, 0.995), (25, 1 - 0.01 * (2 + math.sqrt(2)) / 4), (100, 1.0), (101, 1.0)]
)
def test_target_ema(step: int, expected: float) -> None:
    assert target_ema_at(step, base_target_ema=0.99, total_steps=100) == pytest.approx(expected, abs=1e-12)
