"""Average best overlap of masks with known objects (Section 4.4)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer, UInt8

from pipeline.foundation.pictures import VOID, resize_labels


def best_overlaps(
    refined_map: Integer[np.ndarray, "h w"], labels: UInt8[np.ndarray, "H W"]
) -> Float[np.ndarray, " objects"]:
    """Intersection over union of each object with the mask that fits it best, in [0, 1] (Uijlings et al. 2013).

    An object is what a class other than 0, the background, covers in the image. Masks are brought to the size of the
    labels by nearest neighbours; void (255) is neither in a mask nor in an object.
    """
    masks = resize_labels(refined_map, labels.shape)
    counted = labels != VOID
    num_masks = int(refined_map.max()) + 1
    pairs = labels[counted].astype(np.int64) * num_masks + masks[counted]
    common = np.bincount(pairs, minlength=VOID * num_masks).reshape(VOID, num_masks)
    union = common.sum(1, keepdims=True) + common.sum(0) - common
    overlap = (common / np.maximum(union, 1)).max(1)
    best: np.ndarray = overlap[1:][common[1:].any(1)]
    return best
