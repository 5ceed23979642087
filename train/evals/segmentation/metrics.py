"""Scores of semantic segmentation, all derived from one confusion matrix."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

VOID = 255  # label of pixels that are never counted


def confusion_matrix(
    prediction: Integer[Tensor, "h w"], truth: Integer[Tensor, "h w"], *, num_classes: int
) -> Int64[Tensor, "classes classes"]:
    """Pixel counts, int64: entry (i, j) are pixels of class i that were predicted as j. Void truth is left out.

    Raises:
        ValueError: a counted pixel of either map lies outside 0 … num_classes − 1.
    """
    counted = truth != VOID
    true, predicted = truth[counted].long(), prediction[counted].long()
    for name, ids in (("truth", true), ("prediction", predicted)):
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_classes:
            raise ValueError(f"{name} holds ids {int(ids.min())} … {int(ids.max())}, outside 0 … {num_classes - 1}")
    pairs = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_iou(confusion: Int64[np.ndarray, "classes classes"]) -> Float64[np.ndarray, " classes"]:
    """Intersection over union per class, in [0, 1]; NaN for a class that is in neither truth nor prediction."""
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)


def mean_iou(iou: Float64[np.ndarray, " classes"]) -> float:
    """Mean over the classes that occur in truth or prediction; the others (NaN) are excluded. NaN if none occurs."""
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def pixel_accuracy(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Share of the counted pixels that are right, in [0, 1]; NaN if there are none."""
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else float("nan")
