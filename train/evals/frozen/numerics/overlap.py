"""How segments of an image overlap with its objects: exact counts of pixels, and what follows from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer

from pipeline.foundation.pictures import resize_labels
from train.evals.datasets.annotated import UNLABELLED


class CommonPixels(NamedTuple):
    """Counted pixels that objects and segments have in common; void pixels count in neither.

    `objects` are the ids of the objects that have a counted pixel, ascending; `inside` is what each has in each
    segment, and `outside` what each segment has of all that is not that object.
    """

    objects: Int64[np.ndarray, " objects"]
    inside: Int64[np.ndarray, "objects segments"]
    outside: Int64[np.ndarray, "objects segments"]

    @property
    def area(self) -> Int64[np.ndarray, " objects"]:
        """Counted pixels of each object."""
        total: np.ndarray = self.inside.sum(1)
        return total


def common_pixels(segments: Integer[np.ndarray, "h w"], ids: Integer[np.ndarray, "H W"]) -> CommonPixels:
    """Count what segments and objects have in common, at the size of the annotation.

    Args:
        segments: ids from 0, of any size: brought to the size of `ids` by nearest neighbours.
        ids: objects from 1, 0 where there is none, UNLABELLED where nobody knows.
    """
    # Row 0 is of no object, the last of void pixels; one table of all pixels is faster than a choice among them.
    num_segments, present = int(segments.max()) + 1, np.bincount(ids.ravel(), minlength=UNLABELLED + 1)
    objects = np.flatnonzero(present[1:UNLABELLED]) + 1
    row_of = np.zeros(UNLABELLED + 1, np.int64)
    row_of[objects] = np.arange(1, len(objects) + 1)
    row_of[UNLABELLED] = len(objects) + 1
    pairs = (row_of * num_segments)[ids] + resize_labels(segments, ids.shape)
    table = np.bincount(pairs.ravel(), minlength=(len(objects) + 2) * num_segments).reshape(-1, num_segments)[:-1]
    inside = table[1:]
    return CommonPixels(objects, inside, table.sum(0) - inside)


def best_overlaps(common: CommonPixels) -> Float64[np.ndarray, " objects"]:
    """Intersection over union of each object with the segment that fits it best, in [0, 1] (Uijlings et al. 2013)."""
    best: np.ndarray = overlap_table(common).max(1)
    return best


def overlap_table(common: CommonPixels) -> Float64[np.ndarray, "objects segments"]:
    """Intersection over union of every object with every segment, in [0, 1]."""
    table: np.ndarray = common.inside / (common.area[:, None] + common.outside)
    return table


def best_unions(common: CommonPixels) -> Float64[np.ndarray, " objects"]:
    """Intersection over union of each object with the best of all unions of segments: the ceiling of that partition.

    A segment with i pixels inside of the object and o outside belongs to the best union U if and only if
    i / o exceeds IoU(U) (Dinkelbach 1967: U maximises Σi − λ(A + Σo) at λ = IoU). So U is the beginning of the
    segments ordered by i / o, and all beginnings are tried.
    """
    share = common.inside / np.maximum(common.inside + common.outside, 1)
    order = np.argsort(-share, axis=1, kind="stable")
    inside = np.take_along_axis(common.inside, order, 1).cumsum(1)
    outside = np.take_along_axis(common.outside, order, 1).cumsum(1)
    best: np.ndarray = (inside / (common.area[:, None] + outside)).max(1)
    return best
