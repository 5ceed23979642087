"""Linear segmentation of frozen features, as CAPI's eval_segmentation (Darcet et al. 2025).

Logistic regression tells the most frequent label of a cell from its standardised features. A tenth of the training
images chooses C by mean IoU; then the model is fitted again, on all of them. Every pixel of a cell gets its class.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int16

from pipeline.foundation.progress import Progress
from train.config.frozen import LinearSettings
from train.evals.frozen.numerics.iou import mean_of_ious, overlaps
from train.evals.frozen.numerics.labelled_cells import LabelledCells, set_aside, standardise_cells
from train.evals.frozen.numerics.logistic import Logistic, LogisticRegression
from train.evals.frozen.numerics.rows import RowRange, Rows, keep_rows
from train.evals.frozen.numerics.segmentations import finding_of_squares
from train.evals.frozen.protocol import Finding, Task


def score(task: Task[LinearSettings]) -> Finding:
    """Fit on `train`, score on `val` at size × size pixels, as CAPI does; and at the annotations' own size beside it.

    Raises:
        InputError: the training images are too few or have no labels, or cells are no whole pixels.
    """
    settings, classes = task.settings, task.data.classes
    num_classes = len(classes)
    train, val = (task.features(part, settings.level, settings.size) for part in ("train", "val"))
    with task.clock.phase("labels"):
        cells = LabelledCells.of(train, size=settings.size, num_classes=num_classes)
        val_cells = LabelledCells.of(val, size=settings.size, num_classes=num_classes)
        parts = set_aside(cells, share=settings.selection_share, seed=task.seed)
    with task.clock.phase("standardise"):
        standard = standardise_cells(cells, parts.fitted, device=task.device)
        fitted, others = (cells.cells_of(images, labelled=True) for images in parts)
        places = np.concatenate([fitted, others])
        rows = keep_rows(cells.rows(places, device=task.device, standard=standard))
    cs = [float(10**exponent) for exponent in np.linspace(*settings.log10_c, settings.num_c)]
    with task.clock.phase("choose"):
        asked = cells.rows(cells.cells_of(parts.chosen_by, labelled=False), device=task.device, standard=standard)
        truth = cells.labels[parts.chosen_by]
        regression = _Segmenter(RowRange(rows, 0, len(fitted)), cells.modes[fitted], task.device)
        tried = {}
        progress = Progress("linear segmentation", len(cs), "values of C", short_is_silent=True)
        for c in cs if len(cs) > 1 else []:
            regression.fit(c, max_iterations=settings.max_iterations)
            progress.advance(1)
            tried[c] = mean_of_ious(overlaps(regression.predict(asked, like=truth), truth, num_classes=num_classes))
        best = max(cs, key=lambda c: tried.get(c) or 0.0)
    with task.clock.phase("fit"):
        segmenter = _Segmenter(rows, cells.modes[places], task.device)
        model = segmenter.fit(best, max_iterations=settings.max_iterations)
    with task.clock.phase("predict"):
        every = val_cells.cells_of(np.arange(len(val_cells.labels)), labelled=False)
        asked = val_cells.rows(every, device=task.device, standard=standard)
        prediction = segmenter.predict(asked, like=val_cells.labels)
    chosen = {
        "c": best,
        "mean_iou_by_c": {f"{c:.6g}": value for c, value in tried.items()},
        "iterations": model.iterations,
        "converged": model.converged,
        "training_cells": len(places),
    }
    with task.clock.phase("score"):
        return finding_of_squares(
            prediction, val_cells.labels, size=settings.size, classes=classes, images=val.images, chosen=chosen
        )


class _Segmenter:
    """Logistic regression over the classes that occur among its cells."""

    def __init__(self, rows: Rows, labels: Int16[np.ndarray, " rows"], device: torch.device) -> None:
        self.classes, targets = np.unique(labels, return_inverse=True)
        self.regression = LogisticRegression(rows, torch.from_numpy(targets).to(device), num_classes=len(self.classes))

    def fit(self, c: float, *, max_iterations: int) -> Logistic:
        """The model for one C, begun at the one before."""
        self.model = self.regression.fit(c, max_iterations=max_iterations)
        return self.model

    def predict(self, rows: Rows, *, like: Int16[np.ndarray, "n h w pixels"]) -> Int16[np.ndarray, "n h w pixels"]:
        """The class of each cell at each of its pixels, by the last model."""
        labels = self.classes[self.model.predict(rows).cpu().numpy()]
        return np.broadcast_to(labels.reshape(*like.shape[:3], 1), like.shape)
