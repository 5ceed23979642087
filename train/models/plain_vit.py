"""Vision Transformers as others train them: tokens on a grid after the final norm, and a class token."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from train.models.backbone import Features


class Tokens(NamedTuple):
    """What a Vision Transformer gives: one vector of the image, and one a patch."""

    class_token: Float[Tensor, "b d"]
    grid: Float[Tensor, "b d gh gw"]


# torchvision ships no types: to mypy its classes are Any
class PlainViT(VisionTransformer):  # type: ignore[misc]
    """torchvision's Vision Transformer without its classifier, of any size of image that its patches divide.

    C4 and C5 are both the grid of patch tokens after the final norm: others' weights have no layers of C4 and C5.

    Args:
        width, depth, heads: of the transformer; its MLPs are four times as wide.
        patch: side of a patch in pixels.
        image_size: whose position embedding is stored; others are interpolated from it.
    """

    def __init__(self, *, width: int, depth: int, heads: int, patch: int = 16, image_size: int = 224) -> None:
        super().__init__(image_size, patch, num_layers=depth, num_heads=heads, hidden_dim=width, mlp_dim=4 * width)
        self.c4_channels = self.c5_channels = width
        del self.heads

    def forward_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """The grid of patch tokens."""
        return vit_tokens(self, images).grid

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """The grid of patch tokens of normalised images, twice."""
        grid = self.forward_c4(images)
        return Features(grid, grid)


def vit_tokens(model: VisionTransformer, images: Float[Tensor, "b 3 h w"]) -> Tokens:
    """Class token and patch tokens of torchvision's Vision Transformer, after its final norm.

    Args:
        images: normalised; height and width are multiples of the side of a patch.
    """
    patches = model.conv_proj(images)
    class_token = model.class_token.expand(len(images), -1, -1)
    tokens = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], 1)
    embedding = resized_embedding(model.encoder.pos_embedding, (patches.shape[2], patches.shape[3]))
    tokens = model.encoder.ln(model.encoder.layers(model.encoder.dropout(tokens + embedding)))
    return Tokens(tokens[:, 0], tokens[:, 1:].transpose(1, 2).unflatten(2, patches.shape[2:]))


def resized_embedding(embedding: Float[Tensor, "1 n d"], grid: tuple[int, int]) -> Float[Tensor, "1 m d"]:
    """A position embedding of a class token and a square grid, for another grid.

    Bicubic with antialiasing, as timm's `resample_abs_pos_embed`; the class token's stays, and so does an equal grid.

    Args:
        grid: its rows and columns.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    if (side, side) == grid:
        return embedding
    old = embedding[:, 1:].transpose(1, 2).unflatten(2, (side, side)).float()
    new = F.interpolate(old, grid, mode="bicubic", antialias=True).to(embedding.dtype)
    return torch.cat([embedding[:, :1], new.flatten(2).transpose(1, 2)], 1)


def is_vit(model: nn.Module) -> bool:
    """Whether `vit_tokens` takes a model."""
    return isinstance(model, VisionTransformer)
