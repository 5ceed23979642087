"""kNN segmentation of frozen features, as CAPI's eval_segmentation (Darcet et al. 2025).

Every pixel of a cell gets the label that most of the k nearest training cells have at that pixel. A tenth of the
training images chooses k and the distance by mean IoU; then all training images are the bank.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int16, Int64

from train.config.frozen import NeighbourSettings
from train.evals.frozen.numerics.iou import mean_of_ious, overlaps
from train.evals.frozen.numerics.labelled_cells import LabelledCells, set_aside, standardise_cells
from train.evals.frozen.numerics.neighbours import Distance, nearest
from train.evals.frozen.numerics.rows import Standardisation
from train.evals.frozen.numerics.segmentations import finding_of_squares
from train.evals.frozen.protocol import Finding, Task


def score(task: Task[NeighbourSettings]) -> Finding:
    """Take `train` as the bank, score on `val` at size × size pixels, as CAPI does; and at the annotations' own size.

    Raises:
        InputError: the training images are too few or have no labels, or cells are no whole pixels.
    """
    settings, classes = task.settings, task.data.classes
    train, val = (task.features(part, settings.level, settings.size) for part in ("train", "val"))
    with task.clock.phase("labels"):
        cells = LabelledCells.of(train, size=settings.size, num_classes=len(classes))
        asked = LabelledCells.of(val, size=settings.size, num_classes=len(classes))
        parts = set_aside(cells, share=settings.selection_share, seed=task.seed)
    with task.clock.phase("standardise"):
        standard = standardise_cells(cells, parts.fitted, device=task.device)
    bank = _Bank(task, cells, parts.fitted, standard)
    tried: dict[tuple[int, Distance], float | None] = {}
    grid: list[tuple[int, Distance]] = [(k, distance) for k in settings.k for distance in settings.distances]
    for distance in settings.distances if len(grid) > 1 else ():
        votes = bank.ask(cells, parts.chosen_by, ks=settings.k, distance=distance)
        with task.clock.phase("choose"):
            truth = cells.labels[parts.chosen_by]
            for k, voted in votes.items():
                tried[k, distance] = mean_of_ious(overlaps(voted, truth, num_classes=len(classes)))
    best_k, best_distance = max(grid, key=lambda setting: tried.get(setting) or 0.0)
    bank = _Bank(task, cells, np.arange(len(cells.labels)), standard)
    voted = bank.ask(asked, np.arange(len(asked.labels)), ks=(best_k,), distance=best_distance)[best_k]
    chosen = {
        "k": best_k,
        "distance": best_distance,
        "mean_iou_by_k_and_distance": {f"{k} {distance}": value for (k, distance), value in tried.items()},
        "training_cells": len(bank.places),
    }
    with task.clock.phase("score"):
        return finding_of_squares(
            voted, asked.labels, size=settings.size, classes=classes, images=val.images, chosen=chosen
        )


class _Bank:
    """The labelled cells of some training images."""

    def __init__(
        self,
        task: Task[NeighbourSettings],
        cells: LabelledCells,
        images: Int64[np.ndarray, " images"],
        standard: Standardisation,
    ) -> None:
        self.task, self.cells, self.standard = task, cells, standard
        self.places = cells.cells_of(images, labelled=True)

    def ask(
        self, asked: LabelledCells, images: Int64[np.ndarray, " images"], *, ks: tuple[int, ...], distance: Distance
    ) -> dict[int, Int16[np.ndarray, "images h w pixels"]]:
        """What the k nearest cells, or all where they are fewer, say of the pixels of some images, for each k."""
        with self.task.clock.phase("neighbours"):
            queries = asked.rows(
                asked.cells_of(images, labelled=False), device=self.task.device, standard=self.standard
            )
            bank = self.cells.rows(self.places, device=self.task.device, standard=self.standard)
            found = nearest(queries, bank, k=min(max(ks), len(bank)), distance=distance)
        with self.task.clock.phase("vote"):
            pixels = self.cells.labels.shape[-1]
            votes = pixel_votes(
                self.cells.labels.reshape(-1, pixels),
                self.cells.modes,
                self.cells.histograms[:, :-1] > 0,
                self.places[found.indices.cpu().numpy()],
                ks=ks,
            )
            return {k: voted.reshape(len(images), *asked.labels.shape[1:]) for k, voted in votes.items()}


def pixel_votes(
    labels: Int16[np.ndarray, "cells pixels"],
    modes: Int16[np.ndarray, " cells"],
    presence: Bool[np.ndarray, "cells classes"],
    neighbours: Int64[np.ndarray, "queries most"],
    *,
    ks: tuple[int, ...],
) -> dict[int, Int16[np.ndarray, "queries pixels"]]:
    """For every pixel by itself the most frequent label of the k nearest cells; of equally frequent ones the lowest.

    UNLABELLED pixels do not vote. A pixel that none of the k has labelled takes the mode of the nearest cell.

    Args:
        labels: of the pixels of all cells.
        modes: the most frequent label of each cell.
        presence: which classes each cell has.
        neighbours: cells with a mode, nearest first.
        ks: more than there are neighbours are all of them.

    Returns:
        By k.
    """
    votes = {k: np.empty((len(neighbours), labels.shape[1]), dtype=np.int16) for k in ks}
    for query, cells in enumerate(neighbours):
        classes = np.flatnonzero(presence[cells].any(0)).astype(np.int16)
        if len(classes) == 1:
            for k in ks:
                votes[k][query] = classes[0]
            continue
        agreed = (labels[cells] == classes[:, None, None]).view(np.uint8)
        counts = np.zeros((len(classes), labels.shape[1]), dtype=np.uint16)
        for previous, k in pairwise((0, *sorted(ks))):
            counts += agreed[:, previous:k].sum(1, dtype=np.uint16)
            votes[k][query] = np.where(counts.any(0), classes[counts.argmax(0)], modes[cells[0]])
    return votes
