"""Label maps and masks: areas, pooling, and the crop from the whole image to a view.

Every map covers the unit square of its image (see pipeline.artifacts.sample), whatever its resolution.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from train.r2o.precision import at_least_float, full_precision


class Pooled(NamedTuple):
    """Mean features under each mask (zeros where its area is 0), and the area in cells."""

    features: Float[Tensor, "b m c"]
    area: Float[Tensor, "b m"]


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


def hard_masks(shares: Float[Tensor, "b m h w"]) -> Float[Tensor, "b m h w"]:
    """Each cell given whole to the id with the largest share of it, of equal ones the lowest (DetCon).

    After average pooling, as `create_binary_mask` of DetCon's detcon_b.py. At most one mask a cell is left. Shares of
    views whose side is a multiple of 32 are exact in float32, and with them which ids are equal.
    """
    return torch.zeros_like(shares).scatter_(1, shares.argmax(1, keepdim=True), 1)


@lru_cache(maxsize=16)  # a run has few sizes
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


def mask_pool(features: Float[Tensor, "b c h w"], masks: Float[Tensor, "b m h w"], *, min_area: float = 0.0) -> Pooled:
    """Average features within each (soft) mask, by its true area (Section 3.1 for p_i, Section 3.2 for h).

    Half precisions are averaged in float32, also within autocast.

    Args:
        min_area: divide by no less than this (cells). The authors' release has 1, which shrinks smaller masks.
    """
    flat_masks, cells = masks.flatten(2), at_least_float(features.flatten(2))
    area = flat_masks.sum(2)
    with full_precision(features):
        total = torch.bmm(flat_masks.to(cells.dtype), cells.transpose(1, 2))
    divisor = area.clamp(min=max(min_area, torch.finfo(area.dtype).tiny))
    return Pooled(total / divisor.unsqueeze(2).to(total.dtype), area)


def align_label_map(
    label_map: Int[Tensor, "b h w"],
    num_labels: int,
    *,
    crop_box: Float[Tensor, "b 4"],
    flipped: Bool[Tensor, " b"],
    size: tuple[int, int],
    aligned: bool = True,
) -> Float[Tensor, "b m oh ow"]:
    """The masks of a label map as the view sees them, by RoIAlign (Section 4, Architecture).

    Equal to `torchvision.ops.roi_align` of the one-hot masks with adaptive sampling. Its weights are products of a
    weight by row and one by column, so that each row of the map is spread over the output's columns as it lies, and no
    mask is ever made at the map's own size. The masks of a view sum to 1 in every cell. Float32, also within autocast.

    Args:
        crop_box: xyxy in [0, 1]. flipped: the view was mirrored after its crop. size: the view's grid (high, wide).
        aligned: cell centres are where they are in the image; False is half a cell off (the authors' release).
    """
    batch, height, width = label_map.shape
    box = crop_box.float()
    if (height, size[0]) == (width, size[1]):  # both axes at once: on a GPU, launches are what they cost
        low, high = torch.cat([box[:, 1], box[:, 0]]), torch.cat([box[:, 3], box[:, 2]])
        rows, columns = _roi_weights(low, high, cells=height, out=size[0], aligned=aligned).chunk(2)
    else:
        rows = _roi_weights(box[:, 1], box[:, 3], cells=height, out=size[0], aligned=aligned)
        columns = _roi_weights(box[:, 0], box[:, 2], cells=width, out=size[1], aligned=aligned)
    columns = torch.where(flipped.view(-1, 1, 1), columns.flip(1), columns)
    spread = torch.zeros(batch, size[1], height, num_labels, device=label_map.device)
    labels = label_map.long().unsqueeze(1).expand(-1, size[1], -1, -1)  # b ow h w
    spread.scatter_add_(3, labels, columns.unsqueeze(2).expand(-1, -1, height, -1))
    with full_precision(spread):
        return torch.einsum("bih,bjhm->bmij", rows, spread)


def _roi_weights(low: Tensor, high: Tensor, *, cells: int, out: int, aligned: bool) -> Float[Tensor, "b out cells"]:
    """RoIAlign along one axis: how much of each of the map's cells an output cell takes; rows sum to 1."""
    offset = 0.5 if aligned else 0.0
    start = low * cells - offset
    length = (high * cells - offset) - start  # rounded as torchvision does, which decides the number of samples
    bins = (length if aligned else length.clamp(min=1.0)) / out
    count = bins.ceil().clamp(min=1.0)
    place = torch.arange(cells // out + 1, device=low.device)
    within = (place + 0.5) / count.unsqueeze(1)  # of a bin, b × samples
    edges = torch.arange(out, device=low.device)
    at = start.view(-1, 1, 1) + bins.view(-1, 1, 1) * (edges.view(1, -1, 1) + within.unsqueeze(1))  # b × out × samples
    centre = torch.arange(cells, device=low.device)
    share = (1 - (at.clamp(0, cells - 1).unsqueeze(3) - centre).abs()).clamp(min=0)
    inside = (at >= -1) & (at <= cells)  # as torchvision: samples beyond give nothing; only unaligned boxes have them
    used = inside & (place < count.unsqueeze(1)).unsqueeze(1)
    return (share * used.unsqueeze(3)).sum(2) / count.view(-1, 1, 1)


def sample_label_map(label_map: Int[Tensor, "b h w"], size: tuple[int, int]) -> Int[Tensor, "b oh ow"]:
    """The ids at the centres of a grid's cells; ids are gathered, never interpolated."""
    return F.interpolate(label_map.unsqueeze(1).float(), size=size, mode="nearest-exact").squeeze(1).to(label_map.dtype)


def grid_label_map(rows: int, columns: int, *, like: Int[Tensor, "b h w"]) -> Int[Tensor, "b h w"]:
    """A label map of equal rectangles, of the shape of `like`: the spatial priors of Tables 5 and A5."""
    height, width = like.shape[1:]
    row = torch.arange(height, device=like.device) * rows // height
    column = torch.arange(width, device=like.device) * columns // width
    return (row.view(-1, 1) * columns + column).to(like.dtype).expand_as(like)


def grid_of(num_cells: int) -> tuple[int, int]:
    """Rows and columns of the squarest grid of at most `num_cells` cells, with the most of them."""
    rows = math.isqrt(num_cells)
    return rows, num_cells // rows
