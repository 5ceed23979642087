"""K-means over groups of rows, all groups at once: matrix products only, no loop over clusters or groups."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SEEDING_ROWS, SEEDING_ROWS_PER_CLUSTER = 512, 4  # seeding draws from so many rows of a group at least
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
    farthest from its centre. A group without valid rows gives centres 0. Nothing is read back to the host.

    Args:
        uniforms: random numbers in [0, 1), t per centre to seed (K is their count); see `seeding_uniforms`.
        iterations: Lloyd iterations; once converged, further ones change nothing.
    """
    rows = torch.where(valid.unsqueeze(2), rows.float(), 0.0)
    norms = rows.square().sum(2)
    centres = _seed_centres(rows, valid, uniforms)
    for _ in range(iterations):
        distance, assignment = _nearest(rows, centres, norms)
        centres = _update_centres(rows, valid, centres, assignment, distance)
    distance, assignment = _nearest(rows, centres, norms)
    return Clusters(centres, assignment, (distance * valid).sum(1))


def _nearest(rows: Tensor, centres: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's squared distance to its nearest centre, and which that is: the one large product of an iteration."""
    centre_norms = centres.square().sum(2)
    partial = torch.baddbmm(centre_norms.unsqueeze(1), rows, centres.transpose(1, 2), alpha=-2)  # |μ|² - 2 x·μ
    least, assignment = partial.min(2)
    scale = norms + centre_norms.gather(1, assignment)
    distance = least + norms
    return torch.where(distance < RELATIVE_ZERO * scale, 0.0, distance), assignment


def nearest_centre(rows: Float[Tensor, "g n c"], centres: Float[Tensor, "g k c"]) -> Int[Tensor, "g n"]:
    """The centre that each row is nearest to, 0 … k-1."""
    return _nearest(rows, centres, rows.square().sum(2))[1]


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


def _seed_centres(rows: Tensor, valid: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy k-means++ over an even sample of the rows: they are drawn with probability ∝ their squared distance to
    the nearest centre so far, and of a few such candidates the one that leaves the least inertia becomes the next
    centre (as scikit-learn does). All distances come from one product; the loop over K touches no row.
    """
    num_clusters = uniforms.shape[1]
    groups = torch.arange(rows.shape[0], device=rows.device)
    sample, present = _even_sample(valid, uniforms[:, 0, 0], max(SEEDING_ROWS, SEEDING_ROWS_PER_CLUSTER * num_clusters))
    candidates = rows[groups.unsqueeze(1), sample]
    distances = squared_distances(candidates, candidates)
    chosen = [_draw(present, uniforms[:, 0, -1:]).squeeze(1)]
    nearest = distances[groups, chosen[0]] * present
    for k in range(1, num_clusters):
        weights = torch.where(nearest.sum(1, keepdim=True) > 0, nearest, present.to(nearest.dtype))
        drawn = _draw(weights, uniforms[:, k])
        after = torch.minimum(nearest.unsqueeze(1), distances[groups.unsqueeze(1), drawn])
        best = after.sum(2).argmin(1)
        nearest = after[groups, best]
        chosen.append(drawn[groups, best])
    return candidates[groups.unsqueeze(1), torch.stack(chosen, 1)]


def _even_sample(valid: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices (g, m) of up to `count` valid rows, evenly spaced among them, and which of the m places hold one."""
    count = min(count, valid.shape[1])
    place = torch.arange(count, device=valid.device)
    cumulated = valid.long().cumsum(1)
    total = cumulated[:, -1:]
    spaced = ((place + start.unsqueeze(1).double()) * (total / count)).long()
    rank = torch.where(total > count, spaced, place)
    return torch.searchsorted(cumulated, rank, right=True).clamp(max=valid.shape[1] - 1), rank < total


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Per group (g, n), t indices (g, t) drawn with probability ∝ weights, by the inverse of their cumulated sum."""
    cumulated = weights.double().cumsum(1)
    target = uniforms.double() * cumulated[:, -1:]
    return torch.searchsorted(cumulated, target, right=True).clamp(max=weights.shape[1] - 1)


def _update_centres(rows: Tensor, valid: Tensor, centres: Tensor, assignment: Tensor, distance: Tensor) -> Tensor:
    """Means of the assigned rows (invalid ones are zero). Empty clusters move to the farthest rows, one each, while any
    are off a centre.
    """
    num_clusters = centres.shape[1]
    members = rows.new_zeros(*assignment.shape, num_clusters)
    members.scatter_(2, assignment.unsqueeze(2), valid.to(rows.dtype).unsqueeze(2))
    counts = members.sum(1)
    # On a CPU the product would cost as much as the distances; on a GPU it is fast and always adds in the same order.
    sum_up = _sums_by_row if rows.device.type == "cpu" else _sums_by_product
    means = sum_up(rows, members, assignment) / counts.clamp(min=1).unsqueeze(2)
    empty = counts == 0
    far_distance, far_row = torch.where(valid, distance, 0.0).topk(min(num_clusters, rows.shape[1]), dim=1)
    rank = (empty.cumsum(1) - 1).clamp(0, far_row.shape[1] - 1)
    reseeded = rows.gather(1, far_row.gather(1, rank).unsqueeze(2).expand_as(centres))
    off_centre = (far_distance.gather(1, rank) > 0).unsqueeze(2)
    return torch.where(empty.unsqueeze(2), torch.where(off_centre, reseeded, centres), means)


def _sums_by_product(rows: Tensor, members: Tensor, assignment: Tensor) -> Tensor:
    return torch.bmm(members.transpose(1, 2), rows)


def _sums_by_row(rows: Tensor, members: Tensor, assignment: Tensor) -> Tensor:
    groups, num_clusters = rows.shape[0], members.shape[2]
    owner = assignment + num_clusters * torch.arange(groups, device=rows.device).unsqueeze(1)
    sums = rows.new_zeros(groups * num_clusters, rows.shape[2])
    return sums.index_add_(0, owner.flatten(), rows.flatten(0, 1)).view(groups, num_clusters, -1)
