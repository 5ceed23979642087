"""Dense nearest neighbours in context (Balazevic et al. 2023, Hummingbird), as open-hummingbird-eval computes it.

The memory holds L2-normalised training cells, each with the share of every class among its pixels. A cell of `val`
gets the mean of the shares of its k nearest cells, weighted by softmax(cosine / temperature). Shares are brought to
the size of the annotation bilinearly, and each pixel takes the greatest.

Unlike that code: training images are not augmented; predicted classes are not matched to true ones, since they have
names; classes that are in neither truth nor prediction are left out of the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int16, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.foundation.errors import InputError
from train.config.frozen import ContextSettings
from train.evals.frozen.numerics.cell_labels import join_cells
from train.evals.frozen.numerics.iou import Overlaps, mean_of_ious, overlaps
from train.evals.frozen.numerics.labelled_cells import LabelledCells
from train.evals.frozen.numerics.neighbours import nearest
from train.evals.frozen.numerics.segmentations import PredictAt, full_size_overlaps, segmentation_finding
from train.evals.frozen.protocol import Finding, Task

QUERIES_AT_ONCE = 4096


def score(task: Task[ContextSettings]) -> Finding:
    """Take `train` as the memory, score on `val` at the annotations' own size; `mean_iou_square` is at size × size.

    Raises:
        InputError: the training images have no labels, or cells are no whole pixels.
    """
    settings, classes = task.settings, task.data.classes
    train, val = (task.features(part, settings.level, settings.size) for part in ("train", "val"))
    with task.clock.phase("labels"):
        cells = LabelledCells.of(train, size=settings.size, num_classes=len(classes))
        asked = LabelledCells.of(val, size=settings.size, num_classes=len(classes))
        memory = _memory_of(cells, task)
    k = min(settings.k, len(memory.places))
    with task.clock.phase("neighbours"):
        every = asked.cells_of(np.arange(len(asked.labels)), labelled=False)
        found = nearest(
            asked.rows(every, device=task.device), cells.rows(memory.places, device=task.device), k=k, distance="cosine"
        )
    with task.clock.phase("shares"):
        weights = (found.values / settings.temperature).softmax(1)
        shares = weighted_shares(memory.shares, found.indices, weights).cpu()
        maps = shares.reshape(*asked.labels.shape[:3], len(classes)).permute(0, 3, 1, 2)

    def predict(index: int, shape: tuple[int, int]) -> Int16[np.ndarray, "h w"]:
        return upsampled_classes(maps[index], shape=shape)

    with task.clock.phase("score"):
        square = Overlaps.join([_square_overlaps(predict, asked, i, settings.size) for i in range(len(maps))])
        return segmentation_finding(
            full_size_overlaps(val.images, predict, num_classes=len(classes)),
            classes=classes,
            images=val.images,
            predict=predict,
            chosen={"k": k, "memory_cells": len(memory.places)},
            scores={"mean_iou_square": mean_of_ious(square)},
        )


class _Memory(NamedTuple):
    """Cells of the training images, and the share of each class among their pixels."""

    places: Int64[np.ndarray, " rows"]
    shares: Float32[Tensor, "rows classes"]


def _memory_of(cells: LabelledCells, task: Task[ContextSettings]) -> _Memory:
    """All cells, or as many as the settings say.

    UNLABELLED pixels count as background where there is such a class, as open-hummingbird-eval takes VOC's. Elsewhere
    shares are of the labelled pixels, and a cell without any is left out.
    """
    pixels = cells.histograms[:, :-1].copy()
    if task.data.background is not None:
        pixels[:, task.data.background] += cells.histograms[:, -1]
    if task.settings.memory_cells is None:
        places = np.flatnonzero(pixels.any(1))
    else:
        presence = pixels.reshape(len(cells.labels), -1, pixels.shape[1]) > 0
        places = sampled_cells(presence, total=task.settings.memory_cells, seed=task.seed)
    if not len(places):
        raise InputError("train: no image has a labelled pixel; nothing can be told from its neighbours")
    shares = pixels[places] / pixels[places].sum(1, keepdims=True)
    return _Memory(places, torch.from_numpy(shares.astype(np.float32)).to(task.device))


def sampled_cells(
    presence: Bool[np.ndarray, "images cells classes"], *, total: int, seed: int
) -> Int64[np.ndarray, " rows"]:
    """Of each image equally many cells, rather such as have its rarer classes; as open-hummingbird-eval samples.

    A cell's rank is by u · (sum, over the classes in it, of the cells of the image that have the class), u uniform in
    [0, 1), lowest first. Where `total` is less than the images, so many images give one cell each.

    Args:
        presence: which classes each cell has; cells without any are not taken.

    Returns:
        Places among all cells, ascending.
    """
    rng = np.random.default_rng(seed)
    images, cells, _ = presence.shape
    givers = np.sort(rng.permutation(images)[:total])
    cells_with = presence.sum(1)
    ranks = np.einsum("icx,ix->ic", presence, cells_with) * rng.random((images, cells))
    ranks[~presence.any(2)] = np.inf
    first = np.argsort(ranks[givers], axis=1, kind="stable")[:, : max(1, total // images)]
    taken = np.isfinite(np.take_along_axis(ranks[givers], first, 1))
    places: np.ndarray = np.sort((givers[:, None] * cells + first)[taken])
    return places


def weighted_shares(
    shares: Float32[Tensor, "rows classes"],
    neighbours: Int64[Tensor, "queries k"],
    weights: Float32[Tensor, "queries k"],
) -> Float32[Tensor, "queries classes"]:
    """The weighted mean of the neighbours' shares."""
    parts = zip(neighbours.split(QUERIES_AT_ONCE), weights.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([(weight[:, None] @ shares[rows])[:, 0] for rows, weight in parts])


def upsampled_classes(shares: Float32[Tensor, "classes h w"], *, shape: tuple[int, int]) -> Int16[np.ndarray, "H W"]:
    """The class with the greatest share at every pixel, after bilinear interpolation."""
    full = F.interpolate(shares[None], size=shape, mode="bilinear", align_corners=False)
    # On a CPU `max` takes an eighth of the time of `argmax` here.
    classes: np.ndarray = full[0].max(0).indices.numpy().astype(np.int16)
    return classes


def _square_overlaps(predict: PredictAt, cells: LabelledCells, index: int, size: int) -> Overlaps:
    truth = join_cells(cells.labels[index], size=size)
    return overlaps(predict(index, (size, size))[None], truth[None], num_classes=cells.histograms.shape[1] - 1)
