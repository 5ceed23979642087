"""Scores of all pairs of (init, seed) together: mean and spread over the seeds, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.foundation.errors import InputError
from train.evals.segmentation.metrics import class_iou, mean_iou, pixel_accuracy


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
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}" + "".join(f"  {cell:>14}" for cell in cells) for name, cells in rows)


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
