"""kNN segmentation against a plain loop, and at its limits."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from pipeline.artifacts.scores import score_of
from tests.train.evals.frozen.protocols.labelled_scenes import blob_task, make_task, pure_maps, squared
from tests.train.evals.frozen.protocols.test_linear import in_cells
from train.config.frozen import NeighbourSettings
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.protocols.knn import pixel_votes, score

SETTINGS = NeighbourSettings(size=32, k=(1, 3, 10), distances=("cosine", "l2"))


def vote(labels: list[np.ndarray], mode: int) -> np.ndarray:
    """By pixel: the most frequent label but UNLABELLED, of equals the lowest; `mode` where there is none."""
    winners = []
    for pixel in np.stack(labels).T.tolist():
        count = Counter(label for label in pixel if label != UNLABELLED)
        winners.append(min(count, key=lambda label: (-count[label], label)) if count else mode)
    return np.array(winners)


def by_loop(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, *, k: int, distance: str) -> np.ndarray:
    modes = np.array([np.bincount(cell).argmax() for cell in labels])
    bank, labels, modes = (part[modes != UNLABELLED] for part in (bank, labels, modes))
    votes = []
    for query in queries:
        if distance == "l2":
            far = ((bank - query) ** 2).sum(1)
        else:
            far = -(bank @ query) / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(far, kind="stable")[:k]
        votes.append(vote([labels[i] for i in nearest], int(modes[nearest[0]])))
    return np.stack(votes)


def test_against_a_loop() -> None:
    task = blob_task(SETTINGS, noise=1.5)
    found = score(task)
    parts = {}
    for part in ("train", "val"):
        features = task.features(part, "c5", 32)
        labels = np.stack([in_cells(squared(labels, size=32)) for labels in features.images.maps])
        parts[part] = (features.cells.reshape(len(labels), 16, -1).astype(np.float64), labels)
    features, labels = parts["train"]
    order = np.random.default_rng(0).permutation(24)
    chosen_by, fitted = np.sort(order[:2]), np.sort(order[2:])
    scaler = StandardScaler().fit(features[fitted].reshape(-1, 8))

    def judged(images: np.ndarray, queries: np.ndarray, truth: np.ndarray, k: int, distance: str) -> float:
        bank, asked = (scaler.transform(part.reshape(-1, 8)) for part in (features[images], queries))
        predicted = by_loop(bank, labels[images].reshape(-1, 64), asked, k=k, distance=distance).ravel()
        seen = truth.ravel() != UNLABELLED
        return float(jaccard_score(truth.ravel()[seen], predicted[seen], average="macro"))

    tried = {
        (k, distance): judged(fitted, features[chosen_by], labels[chosen_by], k, distance)
        for k in (1, 3, 10)
        for distance in ("cosine", "l2")
    }
    told = found.chosen["mean_iou_by_k_and_distance"]
    assert len(set(tried.values())) > 3
    for (k, distance), expected in tried.items():
        assert told[f"{k} {distance}"] == pytest.approx(expected, abs=1e-9)
    best = max(tried, key=lambda setting: tried[setting])
    assert (found.chosen["k"], found.chosen["distance"]) == best
    assert found.scores["mean_iou"] == pytest.approx(judged(np.arange(24), *parts["val"], *best), abs=1e-9)
    assert score_of(found.per_image["mean_iou"]) == found.scores["mean_iou"]
    assert set(task.clock.seconds) == {"labels", "standardise", "neighbours", "vote", "choose", "score"}


def test_votes_by_pixel_against_counting() -> None:
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((40, 9)) < 0.5, UNLABELLED, rng.integers(0, 3, (40, 9))).astype(np.int16)
    labels[5], labels[6] = 1, 1
    modes = rng.integers(0, 3, 40).astype(np.int16)
    presence = np.stack([(labels == c).any(1) for c in range(3)], 1)
    nearest = np.concatenate([rng.integers(0, 40, (30, 7)), [[5, 6, 5, 6, 5, 6, 5]]])
    votes = pixel_votes(labels, modes, presence, nearest, ks=(7, 1, 4, 30))
    for k, voted in votes.items():
        for query, cells in enumerate(nearest):
            np.testing.assert_array_equal(voted[query], vote([labels[c] for c in cells[:k]], modes[cells[0]]))
    assert list(votes) == [7, 1, 4, 30]


def test_truth_fed_back_gives_one() -> None:
    parts = {}
    for part, count in (("train", 12), ("val", 5)):
        cells, maps = pure_maps(count, grid=4, shape=(24, 40), classes=5, seed=count)
        parts[part] = (maps, np.eye(5, dtype=np.float16)[cells])
    found = score(make_task(SETTINGS, parts, classes=6))
    assert found.scores == {"mean_iou": 1, "pixel_accuracy": 1, "mean_iou_full": 1}
    assert found.per_class["iou"]["class 5"] is None
    assert found.predict is not None
    np.testing.assert_array_equal(found.predict(2), parts["val"][0][2])


def test_features_that_tell_nothing_give_chance() -> None:
    parts = {}
    for part, count in (("train", 30), ("val", 30)):
        _, maps = pure_maps(count, grid=4, shape=(16, 16), classes=4, seed=count)
        if part == "val":
            maps = maps[::-1]
        noise = np.random.default_rng(count + (part == "val")).standard_normal((count, 4, 4, 4))
        parts[part] = (maps, noise.astype(np.float16))
    found = score(make_task(NeighbourSettings(size=32, k=(1,), distances=("l2",)), parts, classes=4))
    assert found.scores["pixel_accuracy"] == pytest.approx(1 / 4, abs=0.06)
    assert found.scores["mean_iou"] == pytest.approx(1 / 7, abs=0.04)
    assert found.chosen["mean_iou_by_k_and_distance"] == {}


def test_fewer_cells_than_neighbours_all_vote() -> None:
    cells, maps = pure_maps(2, grid=2, shape=(4, 4), classes=2, seed=1)
    cells[:], maps[0][:], maps[1][:] = 1, 1, 1
    parts = {"train": (maps, np.eye(2, dtype=np.float16)[cells]), "val": (maps, np.eye(2, dtype=np.float16)[cells])}
    found = score(make_task(NeighbourSettings(size=4, k=(30,), distances=("l2",)), parts, classes=2))
    assert found.scores["mean_iou"] == 1
    assert found.chosen["training_cells"] == 8
