"""K-means over groups of rows, all groups at once: matrix products only, no loop over clusters or groups."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SEEDING_ROWS, SEEDING_ROWS_PER_CLUSTER = 512, 4  # seeding draws from so many rows of a group at least
CENTRES_PER_NEW, CANDIDATES_PER_CENTRE = 2, 4  # a round adds half as many centres, out of four times as many rows
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
    uniforms: Float[Tensor, "g k"],
    iterations: int,
) -> Clusters:
    """Minimise Eq. 3 over the valid rows of each group: seeding, then a fixed number of Lloyd iterations.

    With K ≥ its distinct rows, each distinct row is a cluster of its own. An empty cluster is reseeded with the row
    farthest from its centre. A group without valid rows gives centres 0. Nothing is read back to the host.

    Args:
        uniforms: random numbers in [0, 1), one per centre to seed (K is their count); see `seeding_uniforms`.
        iterations: Lloyd iterations; a group that has converged is frozen: further ones change no bit of it.
    """
    rows = torch.where(valid.unsqueeze(2), rows.float(), rows.new_zeros((), dtype=torch.float32))
    norms = rows.square().sum(2)
    centres = _seed_centres(rows, valid, uniforms)
    present = valid.to(rows.dtype)
    for _ in range(iterations):
        distance, assignment = _nearest(rows, centres, norms)
        centres = _update_centres(rows, present, centres, assignment, distance)
    distance, assignment = _nearest(rows, centres, norms)
    return Clusters(centres, assignment, (distance * valid).sum(1))


def _nearest(rows: Tensor, centres: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's squared distance to its nearest centre, and which that is: the one large product of an iteration."""
    centre_norms = centres.square().sum(2)
    partial = torch.baddbmm(centre_norms.unsqueeze(1), rows, centres.transpose(1, 2), alpha=-2)  # |μ|² - 2 x·μ
    least, assignment = partial.min(2)
    scale = norms + centre_norms.gather(1, assignment)
    distance = least + norms
    return distance.masked_fill_(distance < RELATIVE_ZERO * scale, 0.0), assignment


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
) -> Float[Tensor, "g k"]:
    """The random numbers that seed consecutive groups of a global batch: a function of (seed, step, group) alone."""
    groups = range(first_group, first_group + num_groups)
    drawn = [np.random.default_rng([seed, step, group]).random(num_clusters, dtype=np.float32) for group in groups]
    return torch.from_numpy(np.stack(drawn))


def _seed_centres(rows: Tensor, valid: Tensor, uniforms: Tensor) -> Tensor:
    """Greedy k-means++ in O(log K) rounds over an even sample of the rows, whose distances come from one product.

    k-means++ (Arthur and Vassilvitskii 2007) draws one row at a time with probability ∝ its squared distance to the
    nearest centre so far, scikit-learn the best of a few. Here a round draws several times as many rows as it adds
    centres (as k-means||, Bahmani et al. 2012, does), gives every row to the nearest of them, and keeps those that take
    most off the inertia: two in the same cluster share its gain, so that both seldom stay.
    """
    num_clusters = uniforms.shape[1]
    group = torch.arange(rows.shape[0], device=rows.device).unsqueeze(1)
    sample, present = _even_sample(valid, uniforms[:, 0], max(SEEDING_ROWS, SEEDING_ROWS_PER_CLUSTER * num_clusters))
    candidates = rows[group, sample]
    distances = squared_distances(candidates, candidates)
    # where every distance is 0, this term alone draws evenly among the rows there are
    even = present * torch.finfo(torch.float64).tiny
    beginnings, places = uniforms.double(), torch.arange(CANDIDATES_PER_CENTRE * num_clusters, device=rows.device)
    drawn = _draw(present.double(), beginnings[:, :1], places[:CANDIDATES_PER_CENTRE])
    least = (distances[group, drawn] * present.unsqueeze(1)).sum(2).argmin(1, keepdim=True)
    chosen, count = [drawn.gather(1, least)], 1
    nearest = distances[group, chosen[0]].squeeze(1) * present
    zero = nearest.new_zeros(())
    while count < num_clusters:
        added = min(max(1, count // CENTRES_PER_NEW), num_clusters - count)
        place = places[: CANDIDATES_PER_CENTRE * added]
        drawn = _draw(nearest + even, beginnings[:, count : count + 1], place)
        after, owner = distances[group, drawn].min(1)
        gained = (nearest - after).clamp_(min=0).unsqueeze(1)
        gain = torch.where(owner.unsqueeze(1) == place.view(1, -1, 1), gained, zero).sum(2)
        chosen.append(drawn.gather(1, gain.topk(added, dim=1).indices))
        nearest = torch.minimum(nearest, distances[group, chosen[-1]].amin(1))
        count += added
    return candidates[group, torch.cat(chosen, 1)]


def _even_sample(valid: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices (g, m) of up to `count` valid rows, evenly spaced among them, and which of the m places hold one."""
    count = min(count, valid.shape[1])
    place = torch.arange(count, device=valid.device)
    cumulated = valid.long().cumsum(1)
    total = cumulated[:, -1:]
    spaced = ((place + start.unsqueeze(1).double()) * (total / count)).long()
    rank = torch.where(total > count, spaced, place)
    return torch.searchsorted(cumulated, rank, right=True).clamp(max=valid.shape[1] - 1), rank < total


def _draw(weights: Tensor, beginning: Tensor, places: Tensor) -> Tensor:
    """Per group, an index (g, m) for each of m places, drawn with probability ∝ weights (g, n), evenly spaced in their
    cumulated sum from a random beginning (g, 1): no row is drawn twice unless its share is above 1 / m.
    """
    cumulated = weights.cumsum(1)
    at = (places + beginning) / len(places)
    return torch.searchsorted(cumulated, at * cumulated[:, -1:], right=True).clamp_(max=weights.shape[1] - 1)


def _update_centres(rows: Tensor, present: Tensor, centres: Tensor, assignment: Tensor, distance: Tensor) -> Tensor:
    """Means of the assigned rows. Empty clusters move to the farthest rows, one each, while any are off a centre.

    Args:
        present: 1 for a valid row, else 0, which is what an invalid row holds.
    """
    num_clusters = centres.shape[1]
    members = rows.new_zeros(*assignment.shape, num_clusters)
    members.scatter_(2, assignment.unsqueeze(2), present.unsqueeze(2))
    counts = members.sum(1)
    # On a CPU the product would cost as much as the distances; on a GPU it is fast and always adds in the same order.
    sum_up = _sums_by_row if rows.device.type == "cpu" else _sums_by_product
    means = sum_up(rows, members, assignment) / counts.unsqueeze(2)  # not finite where there is no member
    empty = counts == 0
    far_distance, far_row = (distance * present).topk(min(num_clusters, rows.shape[1]), dim=1)
    rank = empty.cumsum(1).sub_(1).clamp_(0, far_row.shape[1] - 1)
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
