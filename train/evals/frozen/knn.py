"""Nearest neighbours of one class: what frozen features tell of classes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07  # Wu et al. 2018, as in DINO's evaluation


def knn_top1(
    bank: Float[Tensor, "n d"], classes: Int[Tensor, " n"], queries: Float[Tensor, "q d"], truth: Int[Tensor, " q"]
) -> float:
    """Share of L2-normalised queries whose class gets most of the vote of the 20 nearest of the bank, in [0, 1].

    A neighbour's vote weighs exp(cosine / 0.07).
    """
    similarity, nearest = (queries @ bank.T).topk(min(NEIGHBOURS, len(bank)))
    votes = similarity.new_zeros(len(queries), int(classes.max()) + 1)
    votes.scatter_add_(1, classes[nearest], (similarity / TEMPERATURE).exp())
    return float((votes.argmax(1) == truth).double().mean())
