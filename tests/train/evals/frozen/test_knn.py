"""The vote of nearest neighbours against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from train.evals.frozen import knn
from train.evals.frozen.knn import classes_by_vote, knn_top1


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def oracle_of(k: int, temperature: float) -> KNeighborsClassifier:
    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / temperature)

    return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)


def sklearn_top1(bank: np.ndarray, classes: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    return oracle_of(min(20, len(bank)), 0.07).fit(bank, classes).score(queries, truth)


@pytest.mark.parametrize(("bank", "width"), [(300, 5), (12, 3), (1000, 16)])
def test_neighbours_vote_as_scikit_learn_s(bank: int, width: int) -> None:
    rows, queries = unit_rows(bank, width, 0), unit_rows(150, width, 1)
    classes, truth = (rows[:, :3].argmax(1), queries[:, :3].argmax(1))
    expected = sklearn_top1(rows.numpy(), classes.numpy(), queries.numpy(), truth.numpy())
    assert knn_top1(rows, classes, queries, truth) == pytest.approx(expected)
    assert 1 / 3 < expected < 1


def test_near_votes_outweigh_many_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], *[[0.6, 0.8]] * 19])
    classes = torch.tensor([1, *[0] * 19])
    queries = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    # exp(1/0.07) against 19·exp(0.6/0.07); exp(0.8/0.07) against 19·exp(0.96/0.07)
    assert knn_top1(bank, classes, queries, torch.tensor([1, 0])) == 1
    assert knn_top1(bank, classes, queries, torch.tensor([0, 0])) == 0.5
    assert knn_top1(bank[1:], classes[1:], queries, torch.tensor([1, 0])) == 0.5  # nobody knows class 1


def test_shuffled_classes_give_chance() -> None:
    classes = torch.arange(2000) % 4
    rows = F.normalize(F.one_hot(classes, 4) + 0.1 * unit_rows(2000, 4, 0), dim=1)
    assert knn_top1(rows[:1000], classes[:1000], rows[1000:], classes[1000:]) == 1
    shuffled = classes[torch.randperm(2000, generator=torch.Generator().manual_seed(0))]
    assert knn_top1(rows[:1000], shuffled[:1000], rows[1000:], shuffled[1000:]) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("at_once", [1, 10_000, 1 << 25])
def test_classes_for_each_k_are_scikit_learn_s(
    temperature: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "SIMILARITIES_AT_ONCE", at_once)
    rows, queries = unit_rows(300, 4, 0), unit_rows(70, 4, 1)
    classes = 2 * rows[:, :3].argmax(1)  # nobody is of class 1 or 3
    voted = classes_by_vote(rows, classes, queries, k=(300, 1, 20), temperature=temperature)
    for k, found in zip((300, 1, 20), voted, strict=True):
        expected = oracle_of(k, temperature).fit(rows.numpy(), classes.numpy()).predict(queries.numpy())
        assert found.tolist() == expected.tolist()
    assert not torch.equal(voted[0], voted[1])


def test_a_cold_vote_is_that_of_the_nearest() -> None:
    """exp(cosine / 0.001) is above what float32 holds."""
    rows, queries = unit_rows(200, 4, 0), unit_rows(50, 4, 1)
    classes = torch.arange(200) % 7
    cold = classes_by_vote(rows, classes, queries, k=(50, 1), temperature=0.0001)
    assert torch.equal(cold[0], cold[1])


def test_equal_votes_go_to_the_lowest_class() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert classes_by_vote(bank, torch.tensor([5, 3]), bank[:1], k=(2,), temperature=0.07).tolist() == [[3]]
