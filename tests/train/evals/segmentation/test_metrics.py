"""Metrics against hand numbers and a pixel-by-pixel oracle."""

import math

import numpy as np
import pytest
import torch

from train.evals.segmentation.metrics import class_iou, confusion_matrix, is_confusion, mean_iou, pixel_accuracy


def test_hand_numbers() -> None:
    truth = torch.tensor([[0, 0, 1, 1], [0, 255, 1, 2]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 1, 1, 1], [0, 3, 0, 2]])
    confusion = confusion_matrix(prediction, truth, num_classes=4)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    iou = class_iou(confusion.numpy())
    np.testing.assert_allclose(iou, [2 / 4, 2 / 4, 1.0, np.nan])  # class 3: only where truth is void, so absent
    assert mean_iou(iou) == pytest.approx(2 / 3)
    assert pixel_accuracy(confusion.numpy()) == pytest.approx(5 / 7)


@pytest.mark.parametrize("seed", range(5))
def test_against_a_loop_over_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 4, 255], (13, 17))
    prediction = rng.integers(0, 5, (13, 17))
    expected = np.zeros((6, 6), dtype=np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != 255:
            expected[t, p] += 1
    confusion = confusion_matrix(torch.from_numpy(prediction), torch.from_numpy(truth), num_classes=6).numpy()
    np.testing.assert_array_equal(confusion, expected)
    counted = truth != 255
    for c, value in enumerate(class_iou(confusion)):
        a, b = (truth == c) & counted, (prediction == c) & counted
        expected_iou = (a & b).sum() / (a | b).sum() if (a | b).any() else np.nan
        np.testing.assert_allclose(value, expected_iou)
    assert pixel_accuracy(confusion) == pytest.approx((truth == prediction)[counted].mean())


def test_a_predicted_class_that_is_not_in_the_truth_counts_as_zero() -> None:
    confusion = confusion_matrix(torch.tensor([[1, 0]]), torch.tensor([[0, 0]]), num_classes=2).numpy()
    assert mean_iou(class_iou(confusion)) == pytest.approx((0.5 + 0.0) / 2)


def test_nothing_counted_is_nan() -> None:
    confusion = confusion_matrix(torch.zeros(1, 2).long(), torch.full((1, 2), 255), num_classes=2).numpy()
    assert math.isnan(mean_iou(class_iou(confusion)))
    assert math.isnan(pixel_accuracy(confusion))


def test_ids_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="truth holds ids"):
        confusion_matrix(torch.zeros(1, 1).long(), torch.full((1, 1), 3), num_classes=3)
    with pytest.raises(ValueError, match="prediction holds ids"):
        confusion_matrix(torch.full((1, 1), -1), torch.zeros(1, 1).long(), num_classes=3)


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ([[3, 1], [0, 2]], True),
        ([[4, 0], [2, 0]], True),
        ([[3, 2], [0, 2]], False),  # five pixels of a class that has four
        ([[5, -1], [0, 2]], False),
        ([[3, 1]], False),
        ([[3, 1, 0], [0, 2, 0]], False),
        ([[3.0, 1], [0, 2]], False),
        ([[3, True], [0, 2]], False),
        ([[3, 1], "02"], False),
        ({"0": [3, 1], "1": [0, 2]}, False),
        (None, False),
    ],
)
def test_a_matrix_must_have_the_pixels_of_the_masks(found: object, fits: bool) -> None:
    assert is_confusion(found, pixels=[4, 2]) is fits
