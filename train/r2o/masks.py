"""Label maps and masks: areas, pooling, and the crop from the whole image to a view.

Every map covers the unit square of its image (see pipeline.artifacts.sample), whatever its resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

MIN_VALID_AREA = 1e-3  # cells; a mask with less area in a view is not in that view


class Pooled(NamedTuple):
    """Mean features under each mask (zeros where its area is 0), and the area in cells."""

    features: Float[Tensor, "b m c"]
    area: Float[Tensor, "b m"]


def one_hot_masks(label_map: Int[Tensor, "b h w"], num_labels: int) -> Float[Tensor, "b m h w"]:
    """One float mask per id in 0 … num_labels-1; at each position exactly one of them is 1."""
    masks = torch.zeros(label_map.shape[0], num_labels, *label_map.shape[1:], device=label_map.device)
    return masks.scatter_(1, label_map.long().unsqueeze(1), 1.0)


def cell_areas(label_map: Int[Tensor, "b h w"], num_labels: int, grid: tuple[int, int]) -> Float[Tensor, "b m gh gw"]:
    """The exact share of each cell of a coarser grid that each id covers; the shares of a cell sum to 1.

    Args:
        grid: cells (high, wide), at most the map's own size; no divisibility is needed.
    """
    batch, height, width = label_map.shape
    assert max(grid[0] / height, grid[1] / width) <= 1, f"grid {grid} is finer than the label map {(height, width)}"
    areas = torch.zeros(batch * num_labels * grid[0] * grid[1], device=label_map.device)
    owner = torch.arange(batch, device=label_map.device).view(-1, 1, 1) * num_labels + label_map.long()
    for row, row_share in _cells_of_pixels(height, grid[0], label_map.device):
        for column, column_share in _cells_of_pixels(width, grid[1], label_map.device):
            index = owner * (grid[0] * grid[1]) + row.view(-1, 1) * grid[1] + column
            share = row_share.view(-1, 1) * column_share
            areas.index_add_(0, index.flatten(), share.expand_as(index).reshape(-1))
    return areas.view(batch, num_labels, *grid)


def _cells_of_pixels(size: int, cells: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """The one or two cells that each pixel of an axis lies in, each with the pixel's share of that cell.

    Counted in whole numbers: a cell is `size` units long and a pixel `cells` units.
    """
    start = torch.arange(size, device=device) * cells
    first = torch.div(start, size, rounding_mode="floor")
    in_first = (start + cells).clamp(max=(first + 1) * size) - start
    parts = [(first, in_first / size)]
    if size % cells:
        parts.append(((first + 1).clamp(max=cells - 1), (cells - in_first) / size))
    return parts


def mask_pool(features: Float[Tensor, "b c h w"], masks: Float[Tensor, "b m h w"]) -> Pooled:
    """Average features within each (soft) mask, by its true area (Section 3.1 for p_i, Section 3.2 for h)."""
    flat_masks = masks.flatten(2)
    area = flat_masks.sum(2)
    total = torch.bmm(flat_masks.to(features.dtype), features.flatten(2).transpose(1, 2))
    return Pooled(total / area.clamp(min=torch.finfo(area.dtype).tiny).unsqueeze(2).to(total.dtype), area)


def align_masks(
    masks: Float[Tensor, "b m h w"],
    *,
    crop_box: Float[Tensor, "b 4"],
    flipped: Bool[Tensor, " b"],
    size: tuple[int, int],
) -> Float[Tensor, "b m oh ow"]:
    """Masks of the whole image as the view sees them, by RoIAlign (Section 4, Architecture).

    `aligned=True` with adaptive sampling, so that cell centres are where they are in the image; the masks of a
    partition still sum to 1 in every cell.

    Args:
        crop_box: xyxy in [0, 1]. flipped: the view was mirrored after its crop. size: the view's grid (high, wide).
    """
    height, width = masks.shape[2:]
    scale = torch.tensor([width, height, width, height], dtype=masks.dtype, device=masks.device)
    image_index = torch.arange(masks.shape[0], dtype=masks.dtype, device=masks.device).unsqueeze(1)
    rois = torch.cat([image_index, crop_box.to(masks.dtype) * scale], dim=1)
    aligned = roi_align(masks, rois, output_size=size, spatial_scale=1.0, sampling_ratio=-1, aligned=True)
    return torch.where(flipped.view(-1, 1, 1, 1), aligned.flip(3), aligned)


def sample_label_map(label_map: Int[Tensor, "b h w"], size: tuple[int, int]) -> Int[Tensor, "b oh ow"]:
    """The ids at the centres of a grid's cells; ids are gathered, never interpolated."""
    return F.interpolate(label_map.unsqueeze(1).float(), size=size, mode="nearest-exact").squeeze(1).to(label_map.dtype)
