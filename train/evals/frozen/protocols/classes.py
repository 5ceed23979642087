"""Classification of class folders by neighbours and by logistic regression, from one vector an image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.foundation.errors import InputError
from train.config.frozen import ClassesSettings, DataPart
from train.evals.datasets.annotated import ImageList
from train.evals.frozen.knn import classes_by_vote
from train.evals.frozen.numerics.logistic import LogisticRegression
from train.evals.frozen.numerics.rows import TensorRows, standardise_on
from train.evals.frozen.protocol import Finding, Task

READING_THREADS = 4


class KnownVectors(NamedTuple):
    """Vectors of images, and their classes."""

    rows: Float32[Tensor, "n d"]
    classes: Int64[Tensor, " n"]


def score(task: Task[ClassesSettings]) -> Finding:
    """Shares of images of val that are given their own class, by a classifier fitted on train.

    `knn<k>`: the vote of the k nearest by cosine, each with weight exp(cosine / temperature) (Wu et al. 2018; DINO).
    `knn<k>_centred`: the same after the mean of train is taken off; a common direction of all features says nothing.
    `linear`: logistic regression on standardised features; C is chosen on a part of train, then all of it is fitted.
    """
    settings = task.settings
    train, val = _known_vectors(task, "train"), _known_vectors(task, "val")
    _require_enough(len(train.rows), settings)
    with task.clock.phase("neighbours"):
        given = _by_neighbours(train, val.rows, settings)
    with task.clock.phase("linear"):
        given["linear"], c = _by_regression(train, val.rows, settings, seed=task.seed)
    right = {name: (classes == val.classes).cpu().numpy().astype(np.float64) for name, classes in given.items()}
    per_image = {name: ImageCounts("mean", one, np.ones_like(one)) for name, one in right.items()}
    known = val.classes.cpu().numpy()
    return Finding(
        scores={name: score_of(counts) for name, counts in per_image.items()},
        per_image=per_image,
        per_class={name: _by_class(one, known, classes=task.data.classes) for name, one in right.items()},
        chosen={"c": c, "train_images": len(train.rows), "held_out_images": _held_out(len(train.rows), settings)},
    )


def _known_vectors(task: Task[ClassesSettings], part: DataPart) -> KnownVectors:
    features = task.features(part, task.settings.level, task.settings.size)
    with task.clock.phase("labels"):
        classes = torch.from_numpy(_classes_of(features.images)).to(task.device)
    return KnownVectors(torch.from_numpy(features.pooled).to(task.device), classes)


def _classes_of(images: ImageList) -> Int64[np.ndarray, " n"]:
    def read(index: int) -> int:
        class_id = images.read(index).class_id
        assert class_id is not None, "a list whose images have classes"
        return class_id

    with ThreadPoolExecutor(READING_THREADS) as pool:
        return np.array(list(pool.map(read, range(len(images.names)))), dtype=np.int64)


def _held_out(train_images: int, settings: ClassesSettings) -> int:
    return max(1, round(settings.selection_share * train_images))


def _require_enough(train_images: int, settings: ClassesSettings) -> None:
    if train_images < max(settings.k):
        raise InputError(
            f"eval_frozen.classes.k: {max(settings.k)} neighbours among {train_images} training images; "
            "take fewer neighbours, or more images"
        )
    if _held_out(train_images, settings) >= train_images:
        raise InputError(
            f"eval_frozen.classes.selection_share: {settings.selection_share} of {train_images} training images "
            "leaves none to fit on; take a smaller share, or more images"
        )


def _by_neighbours(
    train: KnownVectors, queries: Float32[Tensor, "q d"], settings: ClassesSettings
) -> dict[str, Int64[Tensor, " q"]]:
    given: dict[str, Int64[Tensor, " q"]] = {}
    for suffix, origin in (("", torch.zeros_like(train.rows[0])), ("_centred", train.rows.mean(0))):
        bank, asked = (F.normalize(rows - origin, dim=1) for rows in (train.rows, queries))
        voted = classes_by_vote(bank, train.classes, asked, k=settings.k, temperature=settings.temperature)
        given |= {f"knn{k}{suffix}": one for k, one in zip(settings.k, voted, strict=True)}
    return given


def _by_regression(
    train: KnownVectors, queries: Float32[Tensor, "q d"], settings: ClassesSettings, *, seed: int
) -> tuple[Int64[Tensor, " q"], float]:
    """The classes of the queries, and the C that gave most of the held-out images their own; of equal ones the least.

    Which images are held out depends on `seed` alone. Features are standardised on those that a model is fitted on.
    """
    held = _held_out(len(train.rows), settings)
    order = np.random.default_rng(seed).permutation(len(train.rows))
    held_out, fitted = (KnownVectors(*(part[places] for part in train)) for places in (order[:held], order[held:]))
    candidates = np.logspace(*settings.log10_c, settings.num_c).tolist()
    chosen_from = _fitted_classes(fitted, held_out.rows, candidates, max_iterations=settings.max_iterations)
    right = [int((given == held_out.classes).sum()) for given in chosen_from]
    c = candidates[int(np.argmax(right))]
    (given,) = _fitted_classes(train, queries, [c], max_iterations=settings.max_iterations)
    return given, c


def _fitted_classes(
    known: KnownVectors, queries: Float32[Tensor, "q d"], candidates: list[float], *, max_iterations: int
) -> list[Int64[Tensor, " q"]]:
    """The queries' classes by the model of each C."""
    standard = standardise_on(TensorRows(known.rows))
    rows, asked = (TensorRows(((part - standard.mean) / standard.scale).float()) for part in (known.rows, queries))
    seen, targets = known.classes.unique(return_inverse=True)
    regression = LogisticRegression(rows, targets, num_classes=len(seen))
    return [seen[regression.fit(c, max_iterations=max_iterations).predict(asked)] for c in candidates]


def _by_class(
    right: np.ndarray, known: Int64[np.ndarray, " n"], *, classes: tuple[str, ...]
) -> dict[str, float | None]:
    shares = {}
    for class_id, name in enumerate(classes):
        own = right[known == class_id]
        shares[name] = float(own.mean()) if len(own) else None
    return shares
