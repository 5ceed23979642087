"""Region refinement: superpixels and features of a batch in, object-centric masks out (Section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from train.r2o.kmeans import kmeans, squared_distances
from train.r2o.masks import cell_areas, mask_pool, sample_label_map

SUPERPIXEL_GRID = 56  # cells of the refined map where superpixels, not C4 cells, are assigned (authors' release)


class Regions(NamedTuple):
    """p_i of Section 3.1: pooled features per superpixel, and which superpixels an image really has."""

    features: Float[Tensor, "b s c"]
    valid: Bool[Tensor, "b s"]


def pool_regions(c4: Float[Tensor, "b c h w"], superpixels: Int[Tensor, "b sh sw"], *, max_superpixels: int) -> Regions:
    """Mask-pool C4 under each superpixel, every cell weighed by the area that the superpixel has in it."""
    areas = cell_areas(superpixels, max_superpixels, (c4.shape[2], c4.shape[3]))
    features, area = mask_pool(c4.float(), areas)
    return Regions(features, area > 0)


def refine(
    c4: Float[Tensor, "b c h w"],
    superpixels: Int[Tensor, "b sh sw"],
    *,
    max_superpixels: int,
    group_size: int,
    uniforms: Float[Tensor, "g k t"],
    iterations: int,
    normalize: bool = True,
    assign: str = "cell",
) -> Int[Tensor, "b rh rw"]:
    """The refined map m: K-means over the regions of each group of consecutive images (Eq. 3), painted on a grid.

    Args:
        max_superpixels: ids are below this.
        group_size: images per K-means; the batch holds whole groups.
        uniforms: per group and centre, see `kmeans`; K is their count.
        normalize: L2-normalise regions and cells first.
        assign: `cell` gives each C4 cell to its nearest centre (the paper), `superpixel` each superpixel, painted at
            56 × 56 (the authors' release).
    Returns:
        cluster ids in 0 … K-1, of C4's size for `cell`.
    """
    assert c4.shape[0] == uniforms.shape[0] * group_size, f"{c4.shape[0]} images are no whole groups of {group_size}"
    regions = pool_regions(c4, superpixels, max_superpixels=max_superpixels)
    rows = _normalized(regions.features) if normalize else regions.features
    clusters = kmeans(
        rows.view(-1, group_size * max_superpixels, rows.shape[2]),
        regions.valid.view(-1, group_size * max_superpixels),
        uniforms=uniforms,
        iterations=iterations,
    )
    if assign == "superpixel":
        size = (min(SUPERPIXEL_GRID, superpixels.shape[1]), min(SUPERPIXEL_GRID, superpixels.shape[2]))
        painted = sample_label_map(superpixels, size).long()
        of_superpixel = clusters.assignment.view(c4.shape[0], max_superpixels)
        return of_superpixel.gather(1, painted.flatten(1)).view_as(painted)
    cells = c4.float().flatten(2).transpose(1, 2)
    cells = _normalized(cells) if normalize else cells
    grouped = cells.reshape(-1, group_size * cells.shape[1], cells.shape[2])
    nearest = squared_distances(grouped, clusters.centres).argmin(2)
    return nearest.view(c4.shape[0], *c4.shape[2:])


def _normalized(features: Tensor) -> Tensor:
    return F.normalize(features, dim=2)


def clusters_in_use(refined_map: Int[Tensor, "b h w"], *, num_clusters: int) -> Float[Tensor, " b"]:
    """How many clusters each image shows, float (b,)."""
    shown = torch.zeros(refined_map.shape[0], num_clusters, device=refined_map.device)
    return shown.scatter_(1, refined_map.flatten(1), 1.0).sum(1)
