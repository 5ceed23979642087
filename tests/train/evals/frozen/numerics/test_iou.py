"""Intersections and unions against scikit-learn, a loop over pixels, and the confusion matrix of fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from pipeline.artifacts.scores import score_of
from pipeline.foundation.pictures import VOID
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.numerics import iou
from train.evals.frozen.numerics.iou import Overlaps, accuracy_counts, class_ious, iou_counts, mean_of_ious, overlaps
from train.evals.segmentation.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy

CLASSES = 7


def maps(seed: int, *, images: int = 5, shape: tuple[int, ...] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    """Class 3 is only predicted, class 5 only true, class 6 neither; the last image is all void."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 4, 5, UNLABELLED], (images, *shape)).astype(np.int16)
    truth[-1] = UNLABELLED
    return rng.choice([0, 1, 2, 3, 4], truth.shape).astype(np.int16), truth


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed: int) -> None:
    prediction, truth = maps(seed)
    found = overlaps(prediction, truth, num_classes=CLASSES)
    seen = truth != UNLABELLED
    expected = jaccard_score(truth[seen], prediction[seen], average="macro")  # over labels in either, as CAPI's
    assert mean_of_ious(found) == pytest.approx(expected, abs=1e-12)
    assert score_of(accuracy_counts(found)) == pytest.approx((truth == prediction)[seen].mean(), abs=1e-12)
    labels = [0, 1, 2, 3, 4, 5]
    by_class = jaccard_score(truth[seen], prediction[seen], labels=labels, average=None)
    named = class_ious(found, classes=tuple("abcdefg"))
    assert list(named.values())[:6] == pytest.approx(by_class.tolist(), abs=1e-12)
    assert named["d"] == named["f"] == 0
    assert named["g"] is None


def test_each_image_against_a_loop_over_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iou, "PIXELS_AT_ONCE", 2 * 13 * 17)  # parts of two images
    prediction, truth = maps(0)
    found = overlaps(prediction, truth, num_classes=CLASSES)
    expected = np.zeros((2, len(truth), CLASSES))
    for image, (predicted, true) in enumerate(zip(prediction, truth, strict=True)):
        for p, t in zip(predicted.ravel(), true.ravel(), strict=True):
            if t != UNLABELLED:
                expected[0, image, t] += p == t
                for c in {int(p), int(t)}:
                    expected[1, image, c] += 1
    np.testing.assert_array_equal(found.intersections, expected[0])
    np.testing.assert_array_equal(found.unions, expected[1])
    np.testing.assert_array_equal(found.counted, (truth != UNLABELLED).sum((1, 2)))


def test_equals_the_scores_of_fine_tuning() -> None:
    prediction, truth = maps(4)
    found = overlaps(prediction, truth, num_classes=CLASSES)
    with_void = torch.from_numpy(np.where(truth == UNLABELLED, VOID, truth).reshape(-1, 17))
    confusion = confusion_matrix(torch.from_numpy(prediction.reshape(-1, 17)), with_void, num_classes=CLASSES).numpy()
    assert mean_of_ious(found) == pytest.approx(mean_iou(class_iou(confusion)), abs=1e-12)
    assert score_of(accuracy_counts(found)) == pytest.approx(pixel_accuracy(confusion), abs=1e-12)


def test_a_pixel_of_no_class_is_wrong_and_of_no_union_but_the_true_ones() -> None:
    found = overlaps(np.array([[-1, 9, 0, -1]]), np.array([[0, 0, 0, UNLABELLED]], np.int16), num_classes=2)
    assert found.intersections.tolist() == [[1, 0]]
    assert found.unions.tolist() == [[3, 0]]
    assert score_of(accuracy_counts(found)) == pytest.approx(1 / 3)


def test_limits() -> None:
    prediction, truth = maps(1)
    perfect = overlaps(truth, truth, num_classes=CLASSES)
    assert mean_of_ious(perfect) == 1
    assert mean_of_ious(overlaps(prediction[-1:], truth[-1:], num_classes=CLASSES)) is None
    assert mean_of_ious(overlaps(prediction[:0], truth[:0], num_classes=CLASSES)) is None
    halves = [overlaps(prediction[part], truth[part], num_classes=CLASSES) for part in (slice(2), slice(2, None))]
    joined = Overlaps.join(halves)
    np.testing.assert_array_equal(joined.unions, overlaps(prediction, truth, num_classes=CLASSES).unions)
    assert score_of(iou_counts(joined)) == mean_of_ious(overlaps(prediction, truth, num_classes=CLASSES))
