"""Overclustering against loops over clusters and classes, and labels that are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from train.config.frozen import OverclusteringSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated, DataSet
from train.evals.frozen.numerics.clusters import RowClusters, cluster_rows
from train.evals.frozen.protocol import Finding, SplitFeatures, Task
from train.evals.frozen.protocols import overclustering
from train.evals.frozen.protocols.overclustering import matched_classes, most_frequent_classes, score

CLASSES = ("background", "cat", "dog", "horse")


class Images:
    """Label maps of any size."""

    digest = "0" * 64

    def __init__(self, labels: list[np.ndarray]) -> None:
        self.labels = labels
        self.names = tuple(f"{i:04d}" for i in range(len(labels)))

    def read(self, index: int) -> Annotated:
        labels = self.labels[index]
        return Annotated(np.zeros((*labels.shape, 3), np.uint8), labels=labels)


def no_model() -> None:
    raise AssertionError("features are enough")


def task_of(
    cells: np.ndarray, labels: list[np.ndarray], *, seed: int = 0, **changed: object
) -> Task[OverclusteringSettings]:
    images = Images(labels)
    data = DataSet(layout="voc", root=Path("/"), classes=CLASSES, background=0, has=frozenset({"labels"}), val=images)

    def features(part: str, level: str, pixels: int) -> SplitFeatures:
        assert (part, level, pixels) == ("val", "c5", 224)
        return SplitFeatures(images=images, cells=cells, pooled=np.zeros((len(cells), 2), np.float32))

    settings = OverclusteringSettings.model_validate({"pca": None, "clusters": 6, "score_size": 28} | changed)
    return Task(
        data=data,
        settings=settings,
        features=features,
        seed=seed,
        device=torch.device("cpu"),
        load_model=no_model,
    )


def scored(cells: np.ndarray, labels: list[np.ndarray], *, seed: int = 0, **changed: object) -> Finding:
    return score(task_of(cells, labels, seed=seed, **changed))


def patches(count: int, *, seed: int, classes: int = 4, grid: int = 7, pixels: int = 4) -> np.ndarray:
    """Labels that are constant in each cell, int16 (n, grid · pixels, grid · pixels)."""
    by_cell = np.random.default_rng(seed).integers(0, classes, (count, grid, grid))
    return by_cell.repeat(pixels, 1).repeat(pixels, 2).astype(np.int16)


def one_hot(labels: np.ndarray, pixels: int = 4) -> np.ndarray:
    return np.eye(4, dtype=np.float16)[labels[:, ::pixels, ::pixels]]


@pytest.mark.parametrize("clusters", [4, 6, 100])
def test_truth_as_features_scores_1(clusters: int) -> None:
    labels = patches(5, seed=0)
    finding = scored(one_hot(labels), list(labels), clusters=clusters)
    names = {"mean_iou", "pixel_accuracy", "hungarian_mean_iou", "hungarian_pixel_accuracy"}
    assert finding.scores == dict.fromkeys(names, 1.0)
    assert finding.per_class["mean_iou"] == finding.per_class["hungarian_mean_iou"] == dict.fromkeys(CLASSES, 1.0)
    assert finding.predict is not None
    assert all(np.array_equal(finding.predict(i), labels[i]) for i in range(5))


@pytest.mark.parametrize("pca", [None, 3, 4])
def test_scores_are_those_of_scikit_learn_s_parts(pca: int | None) -> None:
    """Leopart's steps with scikit-learn's scaler, PCA and K-means, IoUs cluster by cluster, on labels with void.

    The cells lie in four far groups, which every K-means finds; two of them are mostly of one class.
    """
    rng = np.random.default_rng(3)
    group = patches(6, seed=1)
    cells = 20 * one_hot(group) + rng.normal(0, 0.01, (6, 7, 7, 4))
    other = (group + 1) % 4
    labels = np.where(rng.random(group.shape) < 0.6, np.where(group == 3, 2, group), other).astype(np.int16)
    labels[rng.random(labels.shape) < 0.2] = UNLABELLED
    finding = scored(cells.astype(np.float32), list(labels), clusters=4, pca=pca)

    rows = StandardScaler().fit_transform(cells.reshape(-1, 4))
    rows = rows if pca is None else PCA(pca).fit_transform(rows)
    assigned = KMeans(4, n_init=20, random_state=0).fit(rows).labels_.reshape(6, 7, 7)
    predicted = assigned.repeat(4, 1).repeat(4, 2)[labels != UNLABELLED]
    known = labels[labels != UNLABELLED]
    counts = [[((predicted == k) & (known == c)).sum() for c in range(4)] for k in range(4)]
    unions = [[((predicted == k) | (known == c)).sum() for c in range(4)] for k in range(4)]
    majority = np.argmax(counts, axis=1)[predicted]
    cluster, matched = linear_sum_assignment(1 - np.array(counts) / np.array(unions))
    one_to_one = matched[np.argsort(cluster)][predicted]
    for prefix, expected in (("", majority), ("hungarian_", one_to_one)):
        each = jaccard_score(known, expected, labels=range(4), average=None)
        assert finding.scores[f"{prefix}mean_iou"] == pytest.approx(each.mean())
        assert list(finding.per_class[f"{prefix}mean_iou"].values()) == pytest.approx(each)
        assert finding.scores[f"{prefix}pixel_accuracy"] == pytest.approx((known == expected).mean())
    assert finding.scores["mean_iou"] != finding.scores["hungarian_mean_iou"]
    assert finding.chosen["components"] == (pca or 4)


def test_per_image_counts_give_the_scores_and_are_those_of_the_image() -> None:
    rng = np.random.default_rng(0)
    labels = patches(6, seed=2)
    cells = one_hot(labels) + rng.normal(0, 0.5, (6, 7, 7, 4))
    finding = scored(cells.astype(np.float32), list(labels))
    assert {name: score_of(counts) for name, counts in finding.per_image.items()} == finding.scores
    assert finding.predict is not None
    predicted = np.stack([finding.predict(i) for i in range(6)])
    for name, value in finding.per_class["mean_iou"].items():
        one = CLASSES.index(name)
        both, either = ((f := predicted == one) & (t := labels == one)).sum((1, 2)), (f | t).sum((1, 2))
        assert finding.per_image["mean_iou"].value[:, one].tolist() == both.tolist()
        assert finding.per_image["mean_iou"].weight[:, one].tolist() == either.tolist()
        assert value == pytest.approx(both.sum() / either.sum())
    assert 0.3 < finding.scores["mean_iou"] < 1


def test_shuffled_truth_gives_chance() -> None:
    """Four equal classes: clusters of features that tell nothing are right in a quarter of the cells, IoU 1/7.

    With few clusters of many cells the most frequent class of each is about a quarter of it.
    """
    labels = patches(60, seed=4)
    shuffled = np.random.default_rng(0).permutation(one_hot(labels).reshape(-1, 4)).reshape(60, 7, 7, 4)
    finding = scored(shuffled, list(labels), clusters=4)
    assert finding.scores["pixel_accuracy"] == pytest.approx(0.25, abs=0.04)
    assert finding.scores["hungarian_pixel_accuracy"] == pytest.approx(0.25, abs=0.04)
    assert finding.scores["hungarian_mean_iou"] == pytest.approx(1 / 7, abs=0.03)


def test_void_pixels_count_for_nobody_and_void_cells_are_clustered() -> None:
    labels = patches(4, seed=5)
    cells = one_hot(labels)
    with_void = labels.copy()
    with_void[:, :8] = UNLABELLED
    finding = scored(cells, list(with_void))
    assert finding.scores["mean_iou"] == 1
    assert finding.chosen["cells"] == 4 * 49
    assert finding.per_image["pixel_accuracy"].weight.tolist() == [28 * 20] * 4
    # what is predicted in void has no weight: of the cat's pixels those that are labelled
    assert finding.per_image["mean_iou"].weight.sum() == 4 * 28 * 20


def test_nothing_but_void_has_no_score() -> None:
    labels = np.full((3, 28, 28), UNLABELLED, np.int16)
    finding = scored(np.random.default_rng(0).random((3, 7, 7, 4), np.float32), list(labels))
    assert set(finding.scores.values()) == {None}
    assert finding.chosen["hungarian_clusters"] == 0
    assert {name: score_of(counts) for name, counts in finding.per_image.items()} == finding.scores


def test_classes_that_do_not_occur_are_left_out() -> None:
    labels = np.where(patches(5, seed=6, classes=2) == 1, 3, 0).astype(np.int16)
    finding = scored(one_hot(labels), list(labels), clusters=9)
    assert finding.scores["mean_iou"] == finding.scores["hungarian_mean_iou"] == 1
    assert finding.per_class["mean_iou"] == {"background": 1, "cat": None, "dog": None, "horse": 1}
    assert finding.chosen["hungarian_clusters"] == 2


def test_one_class_is_always_right() -> None:
    labels = np.full((2, 30, 20), 2, np.int16)
    cells = np.random.default_rng(0).random((2, 3, 3, 4), np.float32)
    finding = scored(cells, list(labels))
    assert finding.scores["mean_iou"] == finding.scores["hungarian_mean_iou"] == 1


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (14, 14), (3, 5)])
def test_odd_grids_and_images_of_any_size(grid: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 4, size).astype(np.int16) for size in ((50, 33), (9, 70), (28, 28), (1, 1), (40, 40))]
    cells = rng.normal(size=(5, *grid, 4)).astype(np.float32)
    finding = scored(cells, labels, clusters=5, score_size=30)
    assert finding.predict is not None
    assert [finding.predict(i).shape for i in range(5)] == [one.shape for one in labels]
    assert 0 < finding.scores["mean_iou"] <= 1


def test_seeds_give_other_clusters_and_equal_ones_the_same() -> None:
    labels = patches(6, seed=7)
    cells = np.random.default_rng(0).normal(size=(6, 7, 7, 4)).astype(np.float32)
    first, again, other = (scored(cells, list(labels), seed=seed, restarts=1).scores for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_settings_reach_both_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, int]] = []

    def recorded(rows: torch.Tensor, **settings: int) -> RowClusters:
        asked.append(settings)
        return cluster_rows(rows, **settings)

    monkeypatch.setattr(overclustering, "cluster_rows", recorded)
    labels = patches(4, seed=0)
    scored(one_hot(labels), list(labels), seed=7, clusters=9, iterations=3, restarts=2, rows_per_cluster=5)
    both = {"seed": 7, "iterations": 3, "restarts": 2}
    assert asked == [{"clusters": 9, "max_rows": 45} | both, {"clusters": 4, "max_rows": 20} | both]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"clusters": 50}, "overclustering.clusters: 50 clusters of 49 cells"),
        ({"pca": 5}, "overclustering.pca: 5 components of 4 channels; take 4 at most, or null"),
    ],
)
def test_too_few_cells_or_channels_are_named(changed: dict[str, int], message: str) -> None:
    labels = patches(1, seed=0)
    with pytest.raises(InputError, match=message):
        scored(one_hot(labels), list(labels), **changed)


def test_more_classes_than_cells_are_named() -> None:
    labels = patches(1, seed=0)
    with pytest.raises(InputError, match="4 classes in 1 cells"):
        scored(np.zeros((1, 1, 1, 4), np.float32), list(labels), clusters=1)


def test_clusters_are_named_by_precision_or_by_the_best_sum() -> None:
    table = np.array([[5, 6, 0], [9, 1, 0], [0, 0, 0], [4, 4, 1]])
    assert most_frequent_classes(table).tolist() == [1, 0, 0, 0]
    # straight on, 9 pixels and IoUs of 0 + 9/17 are in common; crosswise 8 pixels, and 4/13 + 4/13
    assert matched_classes(np.array([[0, 4], [4, 9]]), present=np.array([0, 1])).tolist() == [1, 0]
    # one to one, class 2 has one pixel, in cluster 3
    assert matched_classes(table[[0, 1, 3]], present=np.array([0, 1, 2])).tolist() == [1, 0, 2]
    assert matched_classes(table[[1, 0]], present=np.array([0, 1])).tolist() == [0, 1]
