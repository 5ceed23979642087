"""Cells of feature maps as rows of a matrix that need not fit in memory, and their standardisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

TILE_ROWS = 4096
HELD_BYTES = 4 << 30  # of rows that are kept as float32 once read


class Rows(Protocol):
    """Rows of one matrix, read a part at a time. `width`: of a row."""

    @property
    def width(self) -> int: ...  # noqa: D102

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """Some of them, on the device that computes, in the precision to compute in. They stay as they are."""


class TensorRows:
    """The rows of a tensor."""

    def __init__(self, rows: Float[Tensor, "rows width"]) -> None:
        self.tensor = rows

    @property
    def width(self) -> int:
        """Of a row."""
        return self.tensor.shape[1]

    def __len__(self) -> int:
        return len(self.tensor)

    def read(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """A view."""
        return self.tensor[start:stop]


class RowRange:
    """Neighbouring rows of others."""

    def __init__(self, rows: Rows, start: int, stop: int) -> None:
        self.rows, self.start, self.stop = rows, start, stop

    @property
    def width(self) -> int:
        """Of a row."""
        return self.rows.width

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, start: int, stop: int) -> Float[Tensor, "rows width"]:
        """What the others give."""
        return self.rows.read(self.start + start, self.start + min(stop, len(self)))


class Standardisation(NamedTuple):
    """(row − mean) / scale, per column."""

    mean: Float64[Tensor, " width"]
    scale: Float64[Tensor, " width"]


class CellRows:
    """Cells of feature maps, as they lie on disk; converted and standardised when they are read.

    Args:
        cells: float16 or float32, (images, height, width, channels).
        chosen: which cells, as places in the list of all cells, image by image.
        standard: None: as they are.
    """

    def __init__(
        self,
        cells: Float[np.ndarray, "n h w c"],
        *,
        chosen: Int64[np.ndarray, " rows"],
        device: torch.device,
        standard: Standardisation | None = None,
    ) -> None:
        self.cells, self.chosen, self.device = cells.reshape(-1, cells.shape[-1]), chosen, device
        self.standard = standard and Standardisation(*(part.to(device, torch.float32) for part in standard))

    @property
    def width(self) -> int:
        """Channels."""
        return self.cells.shape[1]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, start: int, stop: int) -> Float32[Tensor, "rows width"]:
        """A copy."""
        rows = torch.from_numpy(self.cells[self.chosen[start:stop]]).to(self.device).float()
        return rows if self.standard is None else rows.sub_(self.standard.mean).div_(self.standard.scale)


def row_tiles(rows: Rows, *, size: int | None = None) -> Iterator[tuple[int, Float[Tensor, "tile width"]]]:
    """All rows a tile at a time, each with the place of its first row. `size`: of a tile; None: TILE_ROWS."""
    size = size or TILE_ROWS
    for start in range(0, len(rows), size):
        yield start, rows.read(start, min(start + size, len(rows)))


def keep_rows(rows: Rows) -> Rows:
    """Rows that are read many times: in memory as float32 where they fit in `HELD_BYTES`."""
    if isinstance(rows, TensorRows) or len(rows) * rows.width * 4 > HELD_BYTES or not len(rows):
        return rows
    first = rows.read(0, 1)
    everything = torch.empty(len(rows), rows.width, device=first.device)
    for start, tile in row_tiles(rows):
        everything[start : start + len(tile)] = tile
    return TensorRows(everything)


def standardise_on(rows: Rows) -> Standardisation:
    """Mean and standard deviation of each column (of the population; 1 where constant), as StandardScaler's.

    Tiles are merged in float64 (Chan, Golub and LeVeque 1983).
    """
    device = rows.read(0, 1).device
    mean, squares = torch.zeros(2, rows.width, dtype=torch.float64, device=device)
    for start, tile in row_tiles(rows):
        variance, centre = torch.var_mean(tile.double(), 0, correction=0)
        total, shift = start + len(tile), centre - mean
        squares += variance * len(tile) + shift**2 * (start * len(tile) / total)
        mean += shift * (len(tile) / total)
    deviation = (squares / len(rows)).sqrt()
    constant = deviation <= 10 * torch.finfo(torch.float64).eps * mean.abs()
    return Standardisation(mean, torch.where(constant, 1.0, deviation))
