"""Scores of semantic segmentation, all derived from one confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64, Integer
from torch import Tensor

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import VOID


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


def is_confusion(found: object, *, pixels: Sequence[int]) -> bool:
    """Whether plain values can be the confusion matrix of images whose classes have these pixels."""
    if not isinstance(found, list) or len(found) != len(pixels):
        return False
    for row, count in zip(found, pixels, strict=True):
        if not isinstance(row, list) or len(row) != len(pixels):
            return False
        if not all(type(value) is int and value >= 0 for value in row) or sum(row) != count:
            return False
    return True


def class_iou(confusion: Int64[np.ndarray, "classes classes"]) -> Float64[np.ndarray, " classes"]:
    """Intersection over union per class, in [0, 1]; NaN for a class that is in neither truth nor prediction."""
    intersection = np.diag(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    iou: np.ndarray = np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)
    return iou


def mean_iou(iou: Float64[np.ndarray, " classes"]) -> float:
    """Mean over the classes that occur in truth or prediction; the others (NaN) are excluded. NaN if none occurs."""
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def pixel_accuracy(confusion: Int64[np.ndarray, "classes classes"]) -> float:
    """Share of the counted pixels that are right, in [0, 1]; NaN if there are none."""
    total = int(confusion.sum())
    return int(np.trace(confusion)) / total if total else float("nan")


def scores_of(
    confusion: Sequence[Sequence[int]], *, classes: Sequence[str], report_classes: Sequence[str]
) -> dict[str, Any]:
    """Scores of one confusion matrix, in [0, 1]; null for what does not occur in truth or prediction.

    `mean_iou` is over the classes that occur, `report_mean_iou` over those of `report_classes` that do (null without).
    """
    counts = np.asarray(confusion, dtype=np.int64)
    iou = class_iou(counts)
    reported = iou[[classes.index(name) for name in report_classes]]
    return {
        "mean_iou": _or_none(mean_iou(iou)),
        "report_mean_iou": _or_none(mean_iou(reported)),
        "pixel_accuracy": _or_none(pixel_accuracy(counts)),
        "iou": {name: _or_none(float(value)) for name, value in zip(classes, iou, strict=True)},
    }


def summary_of(scores: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Per score its mean, sample standard deviation (n − 1; null below 2 values) and n; then the scores by seed."""
    by_seed = list(scores.values())
    names = [name for name in by_seed[0] if name != "iou"]
    return {
        **{name: _spread([one[name] for one in by_seed]) for name in names},
        "iou": {name: _spread([one["iou"][name] for one in by_seed]) for name in by_seed[0]["iou"]},
        "seeds": {str(seed): one for seed, one in scores.items()},
    }


def table_of(inits: Mapping[str, Mapping[str, Any]], *, classes: Sequence[str], report_classes: Sequence[str]) -> str:
    """IoU per class and the means in percent, one column per init: mean ± standard deviation over its seeds."""
    rows = [("IoU %", [f"{init} (n={len(summary['seeds'])})" for init, summary in inits.items()])]
    rows += [(name, [_cell(summary["iou"][name]) for summary in inits.values()]) for name in classes]
    occurring = sum(any(summary["iou"][name]["n"] for summary in inits.values()) for name in classes)
    rows += [
        (f"mean of the {occurring} classes that occur", [_cell(summary["mean_iou"]) for summary in inits.values()])
    ]
    if report_classes:
        label = f"mean of {len(report_classes)} report_classes"
        rows += [(label, [_cell(summary["report_mean_iou"]) for summary in inits.values()])]
    rows += [("pixel accuracy", [_cell(summary["pixel_accuracy"]) for summary in inits.values()])]
    width, wide = max(len(name) for name, _ in rows), max(14, *(len(cell) for cell in rows[0][1]))
    return "\n".join(f"{name:<{width}}" + "".join(f"  {cell:>{wide}}" for cell in cells) for name, cells in rows)


def check_report_classes(report_classes: Sequence[str], *, classes: Sequence[str]) -> None:
    """Raises InputError where a class is not one of the data set's."""
    for name in report_classes:
        if name not in classes:
            raise InputError(f"eval_voc.report_classes: no class {name!r}; the folder has {', '.join(classes)}")


def _spread(values: Sequence[float | None]) -> dict[str, float | int | None]:
    found = [value for value in values if value is not None]
    mean = sum(found) / len(found) if found else None
    return {"mean": mean, "std": float(np.std(found, ddof=1)) if len(found) > 1 else None, "n": len(found)}


def _cell(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    std = f" ± {100 * spread['std']:.2f}" if spread["std"] is not None else ""
    return f"{100 * spread['mean']:.2f}{std}"


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
