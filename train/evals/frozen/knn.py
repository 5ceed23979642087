"""Nearest neighbours of one class: what frozen features tell of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, as in DINO's evaluation
SIMILARITIES_AT_ONCE = 1 << 25


def knn_top1(
    bank: Float[Tensor, "n d"], classes: Int[Tensor, " n"], queries: Float[Tensor, "q d"], truth: Int[Tensor, " q"]
) -> float:
    """Share of L2-normalised queries whose class gets most of the vote of the 20 nearest of the bank, in [0, 1].

    A neighbour's vote weighs exp(cosine / 0.07).
    """
    voted = classes_by_vote(bank, classes, queries, k=(min(NEIGHBOURS, len(bank)),), temperature=TEMPERATURE)
    return float((voted[0] == truth).double().mean())


def classes_by_vote(
    bank: Float[Tensor, "n d"],
    classes: Int[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    *,
    k: Sequence[int],
    temperature: float,
) -> Int[Tensor, "ks q"]:
    """For each k, the class that gets most of the vote of the k nearest of the bank; of equal ones the lowest.

    A neighbour's vote weighs exp(cosine / temperature) (Wu et al. 2018, Eq. 6).

    Args:
        bank, queries: L2-normalised.
        k: each at most the size of the bank.
    """
    at_once = max(1, SIMILARITIES_AT_ONCE // len(bank))
    num_classes = int(classes.max()) + 1
    voted = []
    for part in queries.split(at_once):
        similarity, nearest = (part @ bank.T).topk(max(k))
        # the nearest weighs 1: the same vote, which no temperature can take out of float32's range
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        voted.append(torch.stack([_winners(weights[:, :n], classes[nearest[:, :n]], num_classes) for n in k]))
    return torch.cat(voted, dim=1)


def _winners(weights: Float[Tensor, "q k"], classes: Int[Tensor, "q k"], num_classes: int) -> Int[Tensor, " q"]:
    votes = weights.new_zeros(len(weights), num_classes)
    return votes.scatter_add_(1, classes, weights).argmax(1)
