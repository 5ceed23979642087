"""What segmentations of `val` amount to: scores, counts by image, and label maps to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int16

from pipeline.artifacts.scores import score_of
from pipeline.foundation.pictures import resize_labels
from train.evals.datasets.annotated import ImageList
from train.evals.frozen.numerics.cell_labels import READERS, join_cells
from train.evals.frozen.numerics.iou import Overlaps, accuracy_counts, class_ious, iou_counts, mean_of_ious, overlaps
from train.evals.frozen.protocol import Finding

IMAGES_AT_ONCE = 32
# (image, (height, width)) → label map of that size.
PredictAt = Callable[[int, tuple[int, int]], Int16[np.ndarray, "h w"]]


def labels_of(images: ImageList, index: int) -> Int16[np.ndarray, "h w"]:
    """The label map of one image at its own size."""
    labels = images.read(index).labels
    assert labels is not None, "a list whose images have labels"
    return labels


def full_size_overlaps(images: ImageList, predict: PredictAt, *, num_classes: int) -> Overlaps:
    """Intersections and unions of each image, in pixels of its annotation."""

    parts, count = [], len(images.names)
    with ThreadPoolExecutor(READERS) as pool:
        # Only files are read in threads: torch has its own for the rest.
        for start in range(0, count, IMAGES_AT_ONCE):
            several = range(start, min(start + IMAGES_AT_ONCE, count))
            for index, labels in zip(several, pool.map(lambda i: labels_of(images, i), several), strict=True):
                parts.append(overlaps(predict(index, labels.shape)[None], labels[None], num_classes=num_classes))
    return Overlaps.join(parts)


def segmentation_finding(
    found: Overlaps,
    *,
    classes: tuple[str, ...],
    images: ImageList,
    predict: PredictAt,
    chosen: Mapping[str, Any],
    scores: Mapping[str, float | None],
) -> Finding:
    """Mean IoU and pixel accuracy of overlaps, with other scores beside them."""
    counts = {"mean_iou": iou_counts(found), "pixel_accuracy": accuracy_counts(found)}
    return Finding(
        scores={name: score_of(each) for name, each in counts.items()} | dict(scores),
        per_class={"iou": class_ious(found, classes=classes)},
        per_image=counts,
        chosen=chosen,
        predict=lambda index: predict(index, labels_of(images, index).shape),
    )


def finding_of_squares(
    cells: Int16[np.ndarray, "n h w pixels"],
    truth: Int16[np.ndarray, "n h w pixels"],
    *,
    size: int,
    classes: tuple[str, ...],
    images: ImageList,
    chosen: Mapping[str, Any],
) -> Finding:
    """Of predictions at size × size pixels, scored there; `mean_iou_full` is at the annotations' own size.

    Args:
        cells: the prediction for each pixel of each cell.
        truth: its label.
    """

    def predict(index: int, shape: tuple[int, int]) -> Int16[np.ndarray, "h w"]:
        return resize_labels(join_cells(cells[index], size=size), shape)

    full = full_size_overlaps(images, predict, num_classes=len(classes))
    return segmentation_finding(
        overlaps(cells, truth, num_classes=len(classes)),
        classes=classes,
        images=images,
        predict=predict,
        chosen=chosen,
        scores={"mean_iou_full": mean_of_ious(full)},
    )
