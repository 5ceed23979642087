"""Nearest neighbours against sorting everything in float64, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from train.evals.frozen.numerics import neighbours
from train.evals.frozen.numerics.neighbours import Distance, Neighbours, nearest
from train.evals.frozen.numerics.rows import TensorRows

DISTANCES: tuple[Distance, ...] = ("cosine", "l2", "inner_product")


@pytest.fixture(autouse=True, params=["pruned", "dense"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that split the data of these tests, on both paths; the GPU's runs on the CPU too."""
    monkeypatch.setattr(neighbours, "QUERIES", 16)
    monkeypatch.setattr(neighbours, "BANK_ROWS", 64)
    monkeypatch.setattr(neighbours, "GPU_BANK_ROWS", 64)
    monkeypatch.setattr(neighbours, "BLOCKS", 16)
    monkeypatch.setattr(neighbours, "LEAST_QUERIES", 8)
    if request.param == "dense":
        monkeypatch.setattr(neighbours, "PRUNING_DEVICES", ())


def search(queries: np.ndarray, bank: np.ndarray, *, k: int, distance: Distance) -> Neighbours:
    rows = (TensorRows(torch.from_numpy(part.astype(np.float32))) for part in (queries, bank))
    return nearest(*rows, k=k, distance=distance)


def by_sorting(queries: np.ndarray, bank: np.ndarray, *, k: int, distance: Distance) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values, a stable sort of all distances in float64."""
    queries, bank = queries.astype(np.float64), bank.astype(np.float64)
    if distance == "l2":
        values = ((queries[:, None] - bank[None]) ** 2).sum(2) ** 0.5
    else:
        values = -queries @ bank.T
    if distance == "cosine":
        values /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(bank, axis=1)
    order = np.argsort(values, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(values, order, 1) * (1 if distance == "l2" else -1)


@pytest.mark.parametrize("k", [1, 5, 16, 17, 40])  # up to the blocks of a tile, and beyond
@pytest.mark.parametrize("distance", ["l2", "inner_product"])
def test_ties_go_to_the_lower_index(distance: Distance, k: int) -> None:
    """Small integers, whose products float32 holds exactly: full of ties. No size is a multiple of its tile."""
    rng = np.random.default_rng(k)
    queries, bank = rng.integers(-3, 4, (37, 5)), rng.integers(-3, 4, (333, 5))
    found = search(queries, bank, k=k, distance=distance)
    indices, values = by_sorting(queries, bank, k=k, distance=distance)
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.values.numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_against_scikit_learn(distance: Distance) -> None:
    rng = np.random.default_rng(0)
    queries, bank = rng.standard_normal((50, 24)), rng.standard_normal((1000, 24)) * rng.uniform(0.5, 2, (1000, 1))
    found = search(queries, bank, k=10, distance=distance)
    if distance == "inner_product":
        indices, expected = by_sorting(queries, bank, k=10, distance=distance)
    else:
        metric = {"cosine": "cosine", "l2": "euclidean"}[distance]
        oracle = NearestNeighbors(n_neighbors=10, metric=metric, algorithm="brute").fit(bank)
        distances, indices = oracle.kneighbors(queries)
        expected = 1 - distances if distance == "cosine" else distances
    np.testing.assert_array_equal(found.indices.numpy(), indices)
    np.testing.assert_allclose(found.values.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_a_bank_in_order_of_nearness(order: str) -> None:
    """Every row of each tile is better than all before it, or worse: the bar never helps, or always."""
    bank = np.arange(500.0)[:: 1 if order == "rising" else -1, None]
    found = search(np.ones((20, 1)), bank, k=7, distance="inner_product")
    best = range(499, 492, -1) if order == "rising" else range(7)
    assert found.indices.tolist() == [list(best)] * 20
    assert found.values[3].tolist() == [499, 498, 497, 496, 495, 494, 493]


@pytest.mark.parametrize("distance", DISTANCES)
def test_neighbours_do_not_depend_on_the_other_queries_or_on_tiles(distance: Distance) -> None:
    rng = np.random.default_rng(1)
    queries, bank = rng.standard_normal((40, 8)), rng.standard_normal((200, 8))
    together = search(queries, bank, k=9, distance=distance)
    alone = [search(queries[i : i + 1], bank, k=9, distance=distance).indices for i in range(40)]
    assert torch.equal(together.indices, torch.cat(alone))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing_and_their_number_is_left_as_it_was(threads: int) -> None:
    rng = np.random.default_rng(3)
    queries, bank = rng.integers(-3, 4, (45, 5)), rng.integers(-3, 4, (300, 5))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = search(queries, bank, k=5, distance="l2")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found.indices.numpy(), by_sorting(queries, bank, k=5, distance="l2")[0])


def test_limits() -> None:
    bank = np.random.default_rng(2).standard_normal((70, 3))
    everything = search(bank[:4], bank, k=70, distance="l2")
    assert everything.indices.sort(1).values.tolist() == [list(range(70))] * 4
    assert everything.indices[:, 0].tolist() == [0, 1, 2, 3]
    assert search(bank[:0], bank, k=3, distance="l2").indices.shape == (0, 3)
    negative_zero = search(np.ones((1, 1)), np.array([[0.0], [-0.0], [0.0]]), k=3, distance="inner_product")
    assert negative_zero.indices.tolist() == [[0, 1, 2]]
    with pytest.raises(AssertionError, match="as many neighbours"):
        search(bank[:1], bank, k=71, distance="l2")
