"""Region refinement: superpixels and features of a batch in, object-centric masks out (Section 3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from train.r2o.kmeans import kmeans, nearest_centre
from train.r2o.masks import cell_areas, grid_label_map, grid_of, mask_pool, sample_label_map
from train.r2o.precision import full_precision

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


class Refinement(NamedTuple):
    """How masks are made. `max_superpixels`: ids are below this.

    All else is as in section `pretrain.refine` of the settings, under the same names; defaults are there alone.
    """

    max_superpixels: int
    clustering: str
    regions: str
    grid: tuple[int, int] | None
    clustering_group_size: int
    kmeans_iterations: int
    normalize_features: bool
    assign: str

    @property
    def needs_features(self) -> bool:
        """Whether the target's C4 decides about the masks."""
        return self.clustering == "kmeans"

    def num_regions(self, num_clusters: int) -> int:
        """Ids of a region are below this."""
        rows, columns = self.grid or grid_of(num_clusters)
        return {"superpixels": self.max_superpixels, "grid": rows * columns, "image": 1}[self.regions]

    def num_masks(self, num_clusters: int) -> int:
        """Ids of a refined map are below this."""
        return num_clusters if self.clustering == "kmeans" else self.num_regions(num_clusters)

    def region_map(self, superpixels: Int[Tensor, "b sh sw"], num_clusters: int) -> Int[Tensor, "b sh sw"]:
        """The prior R as a label map."""
        if self.regions == "superpixels":
            return superpixels
        rows, columns = (1, 1) if self.regions == "image" else self.grid or grid_of(num_clusters)
        return grid_label_map(rows, columns, like=superpixels)


def unrefined(
    superpixels: Int[Tensor, "b sh sw"], how: Refinement, *, num_clusters: int, c4_size: tuple[int, int]
) -> Int[Tensor, "b rh rw"]:
    """The regions themselves, painted as the refined map would be."""
    return sample_label_map(how.region_map(superpixels, num_clusters), _painted_size(superpixels, how, c4_size)).long()


def refine(
    c4: Float[Tensor, "b c h w"],
    superpixels: Int[Tensor, "b sh sw"],
    how: Refinement,
    *,
    uniforms: Float[Tensor, "g k"],
) -> Int[Tensor, "b rh rw"]:
    """The refined map m: K-means over the regions of each group of consecutive images (Eq. 3), painted on a grid.

    Computed in float32, also within autocast.

    Args:
        uniforms: per group and centre, see `kmeans`; K is their count.
    Returns:
        cluster ids in 0 … K-1, of C4's size for `assign: cell`.
    """
    batch, num_clusters, group_size = c4.shape[0], uniforms.shape[1], how.clustering_group_size
    assert batch == uniforms.shape[0] * group_size, f"{batch} images are no whole groups of {group_size}"
    cells = c4.float().flatten(2).transpose(1, 2)
    cells = _normalized(cells) if how.normalize_features else cells
    if how.regions == "cells":
        rows, valid = cells, torch.ones(cells.shape[:2], dtype=torch.bool, device=cells.device)
    else:
        region_map = how.region_map(superpixels, num_clusters)
        regions = pool_regions(c4, region_map, max_superpixels=how.num_regions(num_clusters))
        rows, valid = _normalized(regions.features) if how.normalize_features else regions.features, regions.valid
    with full_precision(c4):
        clusters = kmeans(
            rows.reshape(-1, group_size * rows.shape[1], rows.shape[2]),
            valid.view(-1, group_size * valid.shape[1]),
            uniforms=uniforms,
            iterations=how.kmeans_iterations,
        )
    if how.assign == "superpixel" and how.regions != "cells":
        painted = sample_label_map(region_map, _painted_size(superpixels, how, (c4.shape[2], c4.shape[3]))).long()
        of_region = clusters.assignment.view(batch, -1)
        return of_region.gather(1, painted.flatten(1)).view_as(painted)
    with full_precision(c4):
        nearest = nearest_centre(cells.reshape(-1, group_size * cells.shape[1], cells.shape[2]), clusters.centres)
    return nearest.view(batch, *c4.shape[2:])


def _painted_size(superpixels: Tensor, how: Refinement, c4_size: tuple[int, int]) -> tuple[int, int]:
    if how.assign == "cell":
        return c4_size
    return min(SUPERPIXEL_GRID, superpixels.shape[1]), min(SUPERPIXEL_GRID, superpixels.shape[2])


def _normalized(features: Tensor) -> Tensor:
    return F.normalize(features, dim=2)


def clusters_in_use(refined_map: Int[Tensor, "b h w"], *, num_clusters: int) -> Float[Tensor, " b"]:
    """How many clusters each image shows, float (b,)."""
    shown = torch.zeros(refined_map.shape[0], num_clusters, device=refined_map.device)
    return shown.scatter_(1, refined_map.flatten(1), 1.0).sum(1)
