"""Intersections and unions of predicted and true classes by image, and the scores that follow from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int16, Integer

from pipeline.artifacts.scores import ImageCounts, score_of
from train.evals.datasets.annotated import UNLABELLED

PIXELS_AT_ONCE = 1 << 22


class Overlaps(NamedTuple):
    """Pixels by image and class, without those whose truth is UNLABELLED. `counted`: all others, by image."""

    intersections: Float64[np.ndarray, "n classes"]
    unions: Float64[np.ndarray, "n classes"]
    counted: Float64[np.ndarray, " n"]

    @staticmethod
    def join(parts: list[Overlaps]) -> Overlaps:
        """Those of one list of images after those of another."""
        return Overlaps(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def overlaps(
    prediction: Integer[np.ndarray, "n ..."], truth: Int16[np.ndarray, "n ..."], *, num_classes: int
) -> Overlaps:
    """Intersection and union of each class in each image, in pixels.

    Args:
        prediction: classes 0 … `num_classes` − 1, or others (−1) for a pixel that is said to be none of them.
        truth: classes 0 … `num_classes` − 1, or UNLABELLED: these pixels are not counted, whatever their prediction.
    """
    pixels = math.prod(truth.shape[1:])
    truth, prediction = truth.reshape(len(truth), pixels), prediction.reshape(len(truth), pixels)
    step = max(1, PIXELS_AT_ONCE // max(1, pixels))
    parts = [
        _overlaps_at_once(prediction[i : i + step], truth[i : i + step], num_classes)
        for i in range(0, max(1, len(truth)), step)
    ]
    return Overlaps.join(parts)


def _overlaps_at_once(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> Overlaps:
    counted = truth != UNLABELLED
    first_bin = np.broadcast_to(np.arange(len(truth))[:, None] * num_classes, truth.shape)

    def pixels(labels: np.ndarray, where: np.ndarray) -> np.ndarray:
        flat = np.bincount(first_bin[where] + labels[where], minlength=len(truth) * num_classes)
        return flat.reshape(len(truth), num_classes).astype(np.float64)

    true = pixels(truth, counted)
    predicted = pixels(prediction, counted & (prediction >= 0) & (prediction < num_classes))
    both = pixels(truth, counted & (prediction == truth))
    return Overlaps(both, true + predicted - both, counted.sum(1).astype(np.float64))


def iou_counts(found: Overlaps) -> ImageCounts:
    """What `score_of` makes the mean IoU over the classes in truth or prediction of."""
    return ImageCounts("iou", found.intersections, found.unions)


def accuracy_counts(found: Overlaps) -> ImageCounts:
    """What `score_of` makes the share of right pixels of."""
    return ImageCounts("mean", found.intersections.sum(1), found.counted)


def class_ious(found: Overlaps, *, classes: tuple[str, ...]) -> Mapping[str, float | None]:
    """IoU by name of class, in [0, 1]; None for a class that is in neither truth nor prediction of any image."""
    intersections, unions = found.intersections.sum(0), found.unions.sum(0)
    return {name: float(i / u) if u else None for name, i, u in zip(classes, intersections, unions, strict=True)}


def mean_of_ious(found: Overlaps) -> float | None:
    """Mean IoU over the classes that are in truth or prediction, over all images; None where there are none."""
    return score_of(iou_counts(found))
