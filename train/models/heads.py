"""Projector and predictor: BYOL's two-layer MLPs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class RowBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d that also takes 0 or 1 rows: their variance is 0, the output is the bias, buffers stay."""

    def forward(self, rows: Float[Tensor, "m c"]) -> Float[Tensor, "m c"]:
        """Normalised rows."""
        if self.training and rows.shape[0] < 2:
            return (rows - rows) * self.weight + self.bias
        return super().forward(rows)


class Head(nn.Sequential):
    """Linear → BN → ReLU → Linear, the last without bias (Section 4, Architecture; BYOL)."""

    def __init__(self, in_size: int, *, hidden_size: int, out_size: int, output_bias: bool = False) -> None:
        super().__init__(
            nn.Linear(in_size, hidden_size),
            RowBatchNorm(hidden_size),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_size, out_size, bias=output_bias),
        )
