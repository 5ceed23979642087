"""A backbone whose features are read and never trained: pixels in, C4, C5 and one vector out."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, UInt8
from torch import Tensor, nn


class FrozenFeatures(NamedTuple):
    """Feature maps, and one vector an image: the mean of C5, or a ViT's class token where it has one."""

    c4: Float[Tensor, "b c4 h4 w4"]
    c5: Float[Tensor, "b c5 h5 w5"]
    pooled: Float[Tensor, "b d"]


class FrozenModel(nn.Module):
    """Normalises as the weights were trained, then gives features; in eval mode, without gradients."""

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> FrozenFeatures:
        """Features of whole images, uint8 RGB, of any size that the backbone takes."""
        raise NotImplementedError
