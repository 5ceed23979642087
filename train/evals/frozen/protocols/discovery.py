"""Object discovery: one box an image by LOST's seed expansion, scored by CorLoc (Siméoni et al. 2021)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int16
from torch import Tensor

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.foundation.progress import Progress
from train.config.frozen import DiscoverySettings
from train.evals.datasets.annotated import ImageList
from train.evals.frozen.protocol import Finding, SplitFeatures, Task

ENOUGH_OVERLAP = 0.5
# Boxes that look at no image, xyxy in sides of the image: what a score must be above to say anything.
CONSTANT_BOXES = {"whole_image": (0.0, 0.0, 1.0, 1.0), "centre_box": (0.25, 0.25, 0.75, 0.75)}


class KnownBoxes(NamedTuple):
    """What people know of the images of a list: boxes of objects, and the size, both in pixels."""

    boxes: list[Float[np.ndarray, "n 4"]]
    sizes: list[tuple[int, int]]


def score(task: Task[DiscoverySettings]) -> Finding:
    """CorLoc: the share of images whose box overlaps an object's box by more than a half.

    Images without boxes are left out, and counted in `chosen`. Beside it stand the same scores of a box around the
    whole image, and of one in its centre with half its width and height.
    """
    settings = task.settings
    features = task.features("val", settings.level, settings.size)
    with task.clock.phase("boxes"):
        found = _found_boxes(features, most_seeds=settings.most_seeds, device=task.device)
    with task.clock.phase("score"):
        known = _known_boxes(features.images)
        counts = {"corloc": _localised(found, known)}
        for name, box in CONSTANT_BOXES.items():
            counts[name] = _localised(np.broadcast_to(np.array(box), found.shape), known)
    return Finding(
        scores={name: score_of(one) for name, one in counts.items()},
        per_image=counts,
        chosen={
            "grid": list(features.cells.shape[1:3]),
            "images_without_boxes": sum(not len(boxes) for boxes in known.boxes),
        },
        predict=lambda index: _painted(found[index], known.sizes[index]),
    )


def _found_boxes(features: SplitFeatures, *, most_seeds: int, device: torch.device) -> Float64[np.ndarray, "n 4"]:
    progress = Progress("object discovery", len(features.cells), "images")
    boxes = np.empty((len(features.cells), 4))
    for index, cells in enumerate(features.cells):
        rows = torch.from_numpy(cells.astype(np.float32)).to(device)
        boxes[index] = box_around(object_cells(rows, most_seeds=most_seeds))
        progress.advance(1)
    return boxes


def object_cells(cells: Float[Tensor, "h w c"], *, most_seeds: int) -> Bool[np.ndarray, "h w"]:
    """The cells of one object by LOST, never none of them (Section 3 of Siméoni et al. 2021).

    The mean over cells and channels is taken off, as for its ResNets; the variance of its LayerNorm changes no sign.
    Two cells are similar where their product is positive. The seed is the cell with the fewest similar others, the
    first of equals. Of the `most_seeds` cells with the fewest, those similar to the seed join it. A cell belongs to
    the object where its products with those sum to more than 0, and 4-connected ones lead to the seed.
    """
    height, width, channels = cells.shape
    rows = cells.reshape(-1, channels).float()
    rows = rows - rows.mean()
    products = rows @ rows.T
    similar = products > 0
    others = similar.sum(1) - similar.diagonal().long()
    fewest = others.argsort(stable=True)
    seed, candidates = fewest[0], fewest[:most_seeds]
    expanded = candidates[similar[seed, candidates]]
    belongs = products[expanded].sum(0) > 0
    # a cell of zeros is similar to nothing, not even itself
    belongs[seed] = True
    row, column = divmod(int(seed), width)
    return component_at(belongs.reshape(height, width).cpu().numpy(), row, column)


def component_at(mask: Bool[np.ndarray, "h w"], row: int, column: int) -> Bool[np.ndarray, "h w"]:
    """The 4-connected part of the mask that holds a cell of it."""
    reached = np.zeros_like(mask)
    reached[row, column] = True
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= mask
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def box_around(mask: Bool[np.ndarray, "h w"]) -> Float64[np.ndarray, " 4"]:
    """The smallest box around all of the mask, xyxy in sides of the image; upper ends are left out."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return np.array([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height])


def _known_boxes(images: ImageList) -> KnownBoxes:
    known = KnownBoxes([], [])
    for index in range(len(images.names)):
        annotated = images.read(index)
        assert annotated.boxes is not None
        height, width = annotated.image.shape[:2]
        known.boxes.append(annotated.boxes)
        known.sizes.append((height, width))
    return known


def _localised(found: Float64[np.ndarray, "n 4"], known: KnownBoxes) -> ImageCounts:
    """Of each image with boxes, whether the found one overlaps any of them enough."""
    value, weight = np.zeros(len(found)), np.zeros(len(found))
    for index, (boxes, (height, width)) in enumerate(zip(known.boxes, known.sizes, strict=True)):
        if len(boxes):
            overlaps = overlaps_with(found[index] * [width, height, width, height], boxes)
            value[index], weight[index] = overlaps.max() > ENOUGH_OVERLAP, 1
    return ImageCounts("mean", value, weight)


def overlaps_with(box: Float64[np.ndarray, " 4"], boxes: Float[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    """Intersection over union of a box with each of the others, all xyxy; the box is not empty."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    common = (high - low).clip(min=0).prod(1)
    overlaps: np.ndarray = common / ((box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - common)
    return overlaps


def _painted(box: Float64[np.ndarray, " 4"], size: tuple[int, int]) -> Int16[np.ndarray, "h w"]:
    """1 inside the box, 0 outside."""
    height, width = size
    left, top, right, bottom = (box * [width, height, width, height]).round().astype(int)
    label_map = np.zeros(size, dtype=np.int16)
    label_map[top:bottom, left:right] = 1
    return label_map
