"""The vote of nearest neighbours against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from train.evals.frozen.knn import knn_top1


def unit_rows(count: int, width: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def sklearn_top1(bank: np.ndarray, classes: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    oracle = KNeighborsClassifier(min(20, len(bank)), metric="cosine", algorithm="brute", weights=weights)
    return oracle.fit(bank, classes).score(queries, truth)


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
