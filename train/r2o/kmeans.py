"""K-means over groups of rows, all groups at once: matrix products only, no loop over clusters or groups."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RELATIVE_ZERO = 1e-6  # squared distances below this share of |x|² + |c|² are float32 rounding, taken as 0


class Clusters(NamedTuple):
    """Centres μ_k, each row's cluster (0 … k-1, invalid rows too), and the summed squared distance per group."""

    centres: Float[Tensor, "g k c"]
    assignment: Int[Tensor, "g n"]
    inertia: Float[Tensor, " g"]


def kmeans(
    rows: Float[Tensor, "g n c"],
    valid: Bool[Tensor, "g n"],
    *,
    uniforms: Float[Tensor, "g k t"],
    iterations: int,
) -> Clusters:
    """Minimise Eq. 3 over the valid rows of each group: k-means++ seeding, then a fixed number of Lloyd iterations.

    With K ≥ its distinct rows, each distinct row is a cluster of its own. An empty cluster is reseeded with the row
    farthest from its centre. A group without valid rows gives centres 0.

    Args:
        uniforms: random numbers in [0, 1), t per centre to seed (K is their count); see `seeding_uniforms`.
        iterations: Lloyd iterations; once converged, further ones change nothing.
    """
    rows = torch.where(valid.unsqueeze(2), rows.float(), 0.0)
    norms = rows.square().sum(2)
    centres = _seed_centres(rows, norms, valid, uniforms)
    for _ in range(iterations):
        distance, assignment = squared_distances(rows, centres, norms).min(2)
        centres = _update_centres(rows, valid, centres, assignment, distance)
    distance, assignment = squared_distances(rows, centres, norms).min(2)
    return Clusters(centres, assignment, (distance * valid).sum(1))


def squared_distances(
    rows: Float[Tensor, "g n c"], centres: Float[Tensor, "g k c"], norms: Float[Tensor, "g n"] | None = None
) -> Float[Tensor, "g n k"]:
    """|x - μ|² by one matrix product; what is rounding alone is 0."""
    norms = rows.square().sum(2) if norms is None else norms
    scale = norms.unsqueeze(2) + centres.square().sum(2).unsqueeze(1)
    distance = torch.baddbmm(scale, rows, centres.transpose(1, 2), alpha=-2)
    return distance.masked_fill_(distance < RELATIVE_ZERO * scale, 0.0)


def seeding_uniforms(
    num_clusters: int, *, seed: int, step: int, first_group: int, num_groups: int
) -> Float[Tensor, "g k t"]:
    """The random numbers that seed consecutive groups of a global batch: a function of (seed, step, group) alone.

    There are t = 2 + ⌊ln K⌋ candidates per centre, as in scikit-learn.
    """
    groups = range(first_group, first_group + num_groups)
    shape = (num_clusters, 2 + int(math.log(num_clusters)))
    drawn = [np.random.default_rng([seed, step, group]).random(shape, dtype=np.float32) for group in groups]
    return torch.from_numpy(np.stack(drawn))


def _seed_centres(rows: Tensor, norms: Tensor, valid: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy k-means++: rows are drawn with probability ∝ their squared distance to the nearest centre so far, and
    of a few such candidates the one that leaves the least inertia becomes the next centre (as scikit-learn does).
    """
    groups = torch.arange(rows.shape[0], device=rows.device)
    chosen = rows[groups, _draw(valid.double(), uniforms[:, 0, :1]).squeeze(1)]
    centres = [chosen]
    nearest = squared_distances(rows, chosen.unsqueeze(1), norms).squeeze(2) * valid
    for k in range(1, uniforms.shape[1]):
        left = nearest.double()
        weights = torch.where(left.sum(1, keepdim=True) > 0, left, valid.double())
        drawn = _draw(weights, uniforms[:, k])
        candidates = rows[groups.unsqueeze(1), drawn]
        after = torch.minimum(nearest.unsqueeze(2), squared_distances(rows, candidates, norms))
        best = after.sum(1).argmin(1)
        nearest = after[groups, :, best]
        centres.append(candidates[groups, best])
    return torch.stack(centres, 1)


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Per group (g, n), t indices (g, t) drawn with probability ∝ weights, by the inverse of their cumulated sum."""
    cumulated = weights.cumsum(1)
    target = uniforms.double() * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).clamp(max=weights.shape[1] - 1)


def _update_centres(rows: Tensor, valid: Tensor, centres: Tensor, assignment: Tensor, distance: Tensor) -> Tensor:
    """Means of the assigned rows; empty clusters move to the farthest rows, one each, while any are off a centre."""
    members = rows.new_zeros(*assignment.shape, centres.shape[1])
    members.scatter_(2, assignment.unsqueeze(2), valid.to(rows.dtype).unsqueeze(2))
    counts = members.sum(1)
    means = torch.bmm(members.transpose(1, 2), rows) / counts.clamp(min=1).unsqueeze(2)
    empty = counts == 0
    far_distance, far_row = torch.where(valid, distance, 0.0).topk(min(centres.shape[1], rows.shape[1]), dim=1)
    rank = (empty.cumsum(1) - 1).clamp(0, far_row.shape[1] - 1)
    reseeded = rows.gather(1, far_row.gather(1, rank).unsqueeze(2).expand_as(centres))
    off_centre = (far_distance.gather(1, rank) > 0).unsqueeze(2)
    return torch.where(empty.unsqueeze(2), torch.where(off_centre, reseeded, centres), means)
