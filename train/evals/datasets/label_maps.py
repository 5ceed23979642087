"""Ids as a layout writes them to labels and objects as protocols read them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int16, Integer

from train.evals.datasets.annotated import UNLABELLED, Objects


def labels_of_ids(ids: Integer[np.ndarray, "h w"], *, void: int, first: int = 0) -> Int16[np.ndarray, "h w"]:
    """Class ids from the numbers of a mask that has been checked: `first` is class 0, `void` is UNLABELLED."""
    labels: np.ndarray = np.where(ids == void, UNLABELLED, ids.astype(np.int32) - first).astype(np.int16)
    return labels


def objects_of_classes(labels: Int16[np.ndarray, "h w"], *, background: int | None) -> Objects:
    """Every class of an image as one object, in the order of class ids; `background` is none (Section 4.4)."""
    present = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    return objects_of_ids(labels, {c: c for c in present if c not in (background, UNLABELLED)})


def objects_of_ids(ids: Integer[np.ndarray, "h w"], classes: dict[int, int]) -> Objects:
    """Objects from a map of ids 0 … UNLABELLED. Object i is the i-th of `classes`: its id in the map → its class.

    Pixels of other ids are of no object; UNLABELLED ones stay so.
    """
    number_of = np.zeros(UNLABELLED + 1, dtype=np.int16)
    number_of[list(classes)] = np.arange(1, len(classes) + 1)
    number_of[UNLABELLED] = UNLABELLED
    numbers: np.ndarray = number_of[ids]
    return Objects(numbers, tuple(classes.values()))


def objects_of_instances(
    instances: Integer[np.ndarray, "h w"], labels: Int16[np.ndarray, "h w"], *, void: int, background: int | None
) -> Objects:
    """Objects from a map of instances (0: none), each of the class that most of its labelled pixels have.

    An instance without a labelled pixel of a class other than `background` is none.
    """
    classes: dict[int, int] = {}
    for instance in np.unique(instances[(instances != 0) & (instances != void)]).tolist():
        inside = labels[instances == instance]
        counts = np.bincount(inside[inside != UNLABELLED], minlength=1)
        if background is not None and background < counts.size:
            counts[background] = 0
        if counts.any():
            classes[instance] = int(counts.argmax())
    ids = np.where((instances == void) | (labels == UNLABELLED), UNLABELLED, instances.astype(np.int64))
    return objects_of_ids(ids, classes)
