"""Overclustering: K-means of all cells of val, and clusters named by ground truth (Ziegler and Asano 2022, Leopart)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int16, Integer
from torch import Tensor

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import resize_labels
from train.config.frozen import OverclusteringSettings
from train.evals.datasets.annotated import UNLABELLED, ImageList
from train.evals.frozen.numerics.assignment import match_at_least_cost
from train.evals.frozen.numerics.cell_labels import cell_labels
from train.evals.frozen.numerics.clusters import cluster_rows, principal_components
from train.evals.frozen.numerics.iou import accuracy_counts, class_ious, iou_counts, overlaps
from train.evals.frozen.protocol import Finding, SplitFeatures, Task


def score(task: Task[OverclusteringSettings]) -> Finding:
    """Mean IoU of K = `clusters` with each cluster named after its most frequent class, and of K = number of classes.

    The latter's clusters and classes are matched one to one, so that the sum of their IoUs is the largest
    (`hungarian_…`). Its K counts the classes that occur in val. Cells of every kind are clustered, those of void too;
    void pixels are not scored. Ground truth of val names the clusters: neither score is a prediction.
    """
    settings, classes = task.settings, task.data.classes
    features = task.features("val", settings.level, settings.size)
    with task.clock.phase("labels"):
        square = (settings.score_size, settings.score_size)
        labels = cell_labels(features.images, size=settings.score_size, grid=square)[..., 0]
    present = np.unique(labels[labels != UNLABELLED])
    _require_enough(features, settings, num_classes=len(present))
    with task.clock.phase("components"):
        rows = principal_components(features.cells, count=settings.pca, device=task.device)
    with task.clock.phase("clusters"):
        many = _cluster_maps(rows, task, features, count=settings.clusters)
        few = _cluster_maps(rows, task, features, count=max(1, len(present)))
    with task.clock.phase("score"):
        named = most_frequent_classes(_table_of(many, labels, num_classes=len(classes)))[many]
        matched = matched_classes(_table_of(few, labels, num_classes=len(classes)), present=present)[few]
        found = {
            prefix: overlaps(_at_size_of(maps, labels), labels, num_classes=len(classes))
            for prefix, maps in (("", named), ("hungarian_", matched))
        }
    per_image = {f"{prefix}mean_iou": iou_counts(one) for prefix, one in found.items()}
    per_image |= {f"{prefix}pixel_accuracy": accuracy_counts(one) for prefix, one in found.items()}
    return Finding(
        scores={name: score_of(counts) for name, counts in per_image.items()},
        per_image=per_image,
        per_class={f"{prefix}mean_iou": class_ious(one, classes=classes) for prefix, one in found.items()},
        chosen={"cells": len(rows), "components": rows.shape[1], "hungarian_clusters": len(present)},
        predict=lambda index: _at_size_of_annotation(named, features.images, index),
    )


def _require_enough(features: SplitFeatures, settings: OverclusteringSettings, *, num_classes: int) -> None:
    cells, channels = int(np.prod(features.cells.shape[:3])), features.cells.shape[3]
    if cells < settings.clusters:
        raise InputError(
            f"eval_frozen.overclustering.clusters: {settings.clusters} clusters of {cells} cells; "
            "take fewer clusters, or more images"
        )
    if cells < num_classes:
        raise InputError(f"eval_frozen.overclustering: {num_classes} classes in {cells} cells; take more images")
    if settings.pca is not None and channels < settings.pca:
        raise InputError(
            f"eval_frozen.overclustering.pca: {settings.pca} components of {channels} channels; "
            f"take {channels} at most, or null"
        )


def _cluster_maps(
    rows: Tensor, task: Task[OverclusteringSettings], features: SplitFeatures, *, count: int
) -> Int[np.ndarray, "n h w"]:
    clusters = cluster_rows(
        rows,
        clusters=count,
        seed=task.seed,
        iterations=task.settings.iterations,
        restarts=task.settings.restarts,
        max_rows=task.settings.rows_per_cluster * count,
    )
    maps: np.ndarray = clusters.assignment.cpu().numpy().reshape(features.cells.shape[:3])
    return maps


def _at_size_of(maps: Int16[np.ndarray, "n h w"], labels: Int16[np.ndarray, "n H W"]) -> Int16[np.ndarray, "n H W"]:
    return np.stack([resize_labels(one, labels.shape[1:]) for one in maps])


def _at_size_of_annotation(
    named: Int16[np.ndarray, "n h w"], images: ImageList, index: int
) -> Int16[np.ndarray, "H W"]:
    known = images.read(index).labels
    assert known is not None
    return resize_labels(named[index], known.shape)


def _table_of(
    clusters: Int[np.ndarray, "n h w"], labels: Int16[np.ndarray, "n H W"], *, num_classes: int
) -> Int[np.ndarray, "k classes"]:
    """Labelled pixels by cluster and class."""
    count = int(clusters.max()) + 1
    table = np.zeros(count * num_classes, dtype=np.int64)
    for one, known in zip(clusters, labels, strict=True):
        counted = known != UNLABELLED
        pairs = resize_labels(one, known.shape)[counted] * num_classes + known[counted]
        table += np.bincount(pairs, minlength=len(table))
    return table.reshape(count, num_classes)


def most_frequent_classes(table: Int[np.ndarray, "k classes"]) -> Int16[np.ndarray, " k"]:
    """The class of each cluster with the highest precision; of equal ones the lowest."""
    named: np.ndarray = table.argmax(1).astype(np.int16)
    return named


def matched_classes(
    table: Int[np.ndarray, "k classes"], *, present: Integer[np.ndarray, " classes_there"]
) -> Int16[np.ndarray, " k"]:
    """The class of each cluster in the one-to-one matching with the largest sum of IoUs."""
    there = table[:, present]
    unions = there.sum(1, keepdims=True) + there.sum(0) - there
    pairs = match_at_least_cost(1 - there / unions)
    named = np.zeros(len(table), dtype=np.int16)
    named[pairs[:, 0]] = present[pairs[:, 1]]
    return named
