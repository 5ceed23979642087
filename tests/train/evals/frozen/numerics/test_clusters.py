"""Principal components and K-means against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from train.evals.frozen.numerics import clusters as module
from train.evals.frozen.numerics import rows as rows_module
from train.evals.frozen.numerics.clusters import RowClusters, cluster_rows, principal_components

CPU = torch.device("cpu")


def correlated(rows: int, channels: int, seed: int) -> np.ndarray:
    """Rows of unlike scales and means, every direction with a variance of its own."""
    rng = np.random.default_rng(seed)
    mixed = (rng.normal(size=(rows, channels)) * np.linspace(3, 0.2, channels)) @ rng.normal(size=(channels, channels))
    return (mixed * rng.uniform(0.5, 20, channels) + rng.normal(0, 5, channels)).astype(np.float32)


def components_of(rows: np.ndarray, count: int | None) -> torch.Tensor:
    return principal_components(rows.reshape(len(rows) // 2, 2, 1, -1), count=count, device=CPU)


def blobs(rows: int, channels: int, centres: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 1, (centres, channels))
    return torch.from_numpy(means[rng.integers(0, centres, rows)] + rng.normal(0, 0.4, (rows, channels))).float()


def clustered(rows: torch.Tensor, clusters: int, **changed: int) -> RowClusters:
    settings = {"seed": 0, "iterations": 100, "restarts": 1, "max_rows": 1_000_000} | changed
    return cluster_rows(rows, clusters=clusters, **settings)


@pytest.mark.parametrize(("rows", "channels", "count"), [(400, 12, 5), (400, 12, 12), (30, 40, 10), (300, 1, 1)])
def test_components_are_scikit_learns(rows: int, channels: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "TILE_ROWS", 64)  # some parts, and one that is not full
    data = correlated(rows, channels, 0)
    theirs = PCA(count, svd_solver="full").fit_transform(StandardScaler().fit_transform(data.astype(np.float64)))
    ours = components_of(data, count).double().numpy()
    assert ours.shape == (rows, count)
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours * signs, theirs, atol=2e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_entry_of_each_direction_is_positive(seed: int) -> None:
    data = correlated(300, 8, seed)
    standard = StandardScaler().fit_transform(data.astype(np.float64))
    directions = np.linalg.lstsq(standard, components_of(data, 8).double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(directions.T @ directions, np.eye(8), atol=1e-3)
    assert (directions[np.abs(directions).argmax(0), np.arange(8)] > 0).all()


def test_constant_channels_become_0_and_half_precision_is_read() -> None:
    data = correlated(200, 4, 2)
    data[:, 1] = 1000.7
    data[:, 2] = 0
    rows = components_of(data, None)
    assert not rows[:, 1].any()
    assert not rows[:, 2].any()
    expected = StandardScaler().fit_transform(data.astype(np.float64))
    np.testing.assert_allclose(rows[:, [0, 3]].numpy(), expected[:, [0, 3]], atol=1e-4)
    half = data.astype(np.float16)
    again = components_of(half.astype(np.float32), 3)
    assert torch.equal(components_of(half, 3), again)


@pytest.mark.parametrize("clusters", [1, 2, 8, 30])
def test_lloyd_from_the_same_seeds_is_scikit_learns(clusters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 128)
    rows = blobs(500, 6, 8, 1)
    seeds = clustered(rows, clusters, iterations=0).centres.numpy()
    ours = clustered(rows, clusters)
    theirs = KMeans(clusters, init=seeds, n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(rows.numpy())
    assert np.array_equal(ours.assignment.numpy(), theirs.labels_)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    np.testing.assert_allclose(ours.centres.numpy(), theirs.cluster_centers_, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(("rows", "clusters", "centres"), [(1000, 21, 500), (1000, 100, 60), (1000, 7, 60)])
def test_inertia_is_as_good_as_scikit_learns(rows: int, clusters: int, centres: int) -> None:
    data = blobs(rows, 20, centres, 2)
    ours = [clustered(data, clusters, seed=seed, restarts=5).inertia for seed in range(3)]
    theirs = [KMeans(clusters, n_init=5, random_state=seed).fit(data.numpy()).inertia_ for seed in range(3)]
    assert np.median(ours) <= 1.02 * np.median(theirs)


@pytest.mark.long
def test_inertia_of_rows_with_heavy_tails_is_as_good_as_scikit_learns() -> None:
    """A few rows lie far out, as those of a ResNet do: seeds from a part of the rows miss them."""
    rng = np.random.default_rng(0)
    data = torch.from_numpy(rng.normal(size=(2500, 12)) * rng.lognormal(0, 1, (2500, 1))).float()
    ours = [clustered(data, 150, seed=seed).inertia for seed in range(3)]
    theirs = [KMeans(150, n_init=1, random_state=seed).fit(data.numpy()).inertia_ for seed in range(3)]
    assert np.median(ours) <= 1.02 * np.median(theirs)


def test_the_best_restart_is_kept() -> None:
    data = blobs(300, 4, 40, 3)
    alone = [clustered(data, 20, restarts=count).inertia for count in range(1, 9)]
    assert alone == sorted(alone, reverse=True)
    assert alone[-1] < alone[0]


def test_iterations_are_counted() -> None:
    data = blobs(400, 4, 40, 4)
    inertia = [clustered(data, 20, iterations=count).inertia for count in range(6)]
    assert inertia == sorted(inertia, reverse=True)
    assert inertia[5] < inertia[1] < inertia[0]


def test_equal_seeds_give_equal_clusters_and_others_do_not() -> None:
    data = blobs(400, 4, 40, 5)
    first, again, other = (clustered(data, 20, seed=seed).assignment for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_centres_are_those_of_the_drawn_rows_and_every_row_is_assigned() -> None:
    data = blobs(600, 3, 5, 6)
    part = clustered(data, 5, max_rows=200)
    drawn = np.sort(np.random.default_rng(0).choice(600, 200, replace=False))
    torch.testing.assert_close(part.centres, clustered(data[drawn], 5).centres)
    distances = (data[:, None] - part.centres).square().sum(2)
    assert torch.equal(part.assignment, distances.argmin(1))
    assert part.inertia == pytest.approx(float(distances.amin(1).sum()), rel=1e-4)


def test_more_clusters_than_distinct_rows_lose_nothing() -> None:
    data = torch.eye(4).repeat(30, 1)
    found = clustered(data, 50)
    assert found.inertia == 0
    assert torch.equal(found.centres[found.assignment], data)
    assert clustered(torch.zeros(9, 2), 9).inertia == 0
    assert clustered(torch.full((1, 3), 5.0), 1).assignment.tolist() == [0]


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0]])
    centres = torch.tensor([[0.5], [100.0]])
    distance, assignment = module._nearest_centres(rows, centres)
    assert distance.tolist() == [0.25, 0.25, 90.25]
    means = module._means(rows, centres, assignment, distance)
    assert means[1].item() == 10
    assert means[0].item() == pytest.approx(11 / 3)


def test_an_empty_cluster_stays_where_no_row_is_off_its_centre() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    centres = torch.tensor([[1.0], [2.0], [7.0]])
    distance, assignment = module._nearest_centres(rows, centres)
    assert module._means(rows, centres, assignment, distance).tolist() == [[1], [2], [7]]
