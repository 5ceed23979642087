"""The representation loss (Eqs. 4 and 5), and DetCon's contrastive one for the baselines and A.4."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from train.r2o.precision import at_least_float, full_precision

INFINITY = 1e9  # taken from a logit that is no negative


def byol_loss(prediction: Float[Tensor, "m d"], projection: Float[Tensor, "m d"]) -> Float[Tensor, " m"]:
    """Per mask, 2 - 2·cos(q_θ(z_θ), z_ξ), in [0, 4] (Eq. 4); Eq. 5 adds the views exchanged."""
    return 2 - 2 * F.cosine_similarity(at_least_float(prediction), at_least_float(projection), dim=1)


class Everywhere(NamedTuple):
    """What all ranks hold of a tensor, in the order of ranks, and where this rank's part begins."""

    values: Tensor
    first: int


Gather = Callable[[Tensor], Everywhere]


def only_here(values: Tensor) -> Everywhere:
    """A world of one."""
    return Everywhere(values, 0)


def sample_masks(present: Bool[Tensor, "b m"], uniforms: Float[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """n mask ids per image, drawn evenly and with replacement among those present (DetCon, Section 3)."""
    cumulated = present.long().cumsum(1)
    rank = (uniforms * cumulated[:, -1:]).long().clamp(max=(cumulated[:, -1:] - 1).clamp(min=0))
    return torch.searchsorted(cumulated, rank, right=True).clamp(max=present.shape[1] - 1)


def contrastive_loss_sum(
    predictions: tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]],
    targets: tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]],
    mask_ids: tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]],
    *,
    temperature: float,
    gather: Gather = only_here,
) -> Float[Tensor, ""]:
    """Both directions of DetCon's loss, summed over the B·n sampled masks (its Eq. 3; byol_nce_detcon in its code).

    A mask's positives are the samples of the same mask of the same image in the other view; its negatives all other
    samples of both views, of this and of every other image of the global batch. A mask drawn m times weighs 1/m.

    Args:
        targets: of both views; the target network's projections (DetCon-B) or the online one's own (NT-Xent, A.4).
        gather: the targets of all ranks.
    """
    with full_precision(predictions[0]):
        queries = [F.normalize(at_least_float(p), dim=2) for p in predictions]
        everywhere = [gather(F.normalize(at_least_float(t), dim=2)) for t in targets]
        total = queries[0].new_zeros(())
        for view in (0, 1):
            other = 1 - view
            same = [mask_ids[view].unsqueeze(2) == mask_ids[v].unsqueeze(1) for v in (other, view)]  # b n n
            logits = [_logits(queries[view], everywhere[v], temperature) for v in (other, view)]  # b n B n
            first = everywhere[view].first
            positive = _on_own_image(logits[0], same[0], first)
            excluded = _on_own_image(logits[1], same[1], first)
            both = torch.cat([logits[0].flatten(2), (logits[1] - INFINITY * excluded).flatten(2)], 2)
            count = positive.flatten(2).sum(2)
            log_share = both.log_softmax(2)[:, :, : positive.flatten(2).shape[2]]
            cross_entropy = -(positive.flatten(2) * log_share).sum(2) / count.clamp(min=1)
            weight = (count > 0) / same[1].sum(2)
            total = total + (weight * cross_entropy).sum()
        return total


def _logits(queries: Tensor, everywhere: Everywhere, temperature: float) -> Tensor:
    return torch.einsum("bnd,umd->bnum", queries, everywhere.values) / temperature


def _on_own_image(logits: Tensor, same: Tensor, first: int) -> Tensor:
    """`same` (b, n, n) at this rank's images among those of all ranks: (b, n, B, n), 0 elsewhere."""
    result = torch.zeros_like(logits)
    here = torch.arange(len(same), device=same.device)
    result[here, :, first + here] = same.to(result.dtype)
    return result
