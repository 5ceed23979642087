"""What a backbone is beside its weights: all that decides how it is built."""

from __future__ import annotations

from dataclasses import dataclass

from train.models.backbone import ResNetBackbone, ViTBackbone
from train.models.plain_vit import PlainViT

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
PLAIN_VITS = {"vit_s": (384, 12, 6), "vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}  # width, depth, heads
AnyBackbone = ResNetBackbone | ViTBackbone | PlainViT


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a backbone is built.

    Attributes:
        name: resnet18 … resnet152, or vit_<s, b or l>_<side of a patch>.
        heads: of a ViT's attention where they are not the usual number; MoCo v3's ViT-S has 12.
        stride_in_1x1: a bottleneck halves its input by the first 1 × 1 convolution, as MSRA's ResNets do.
        same_padding: strided convolutions pad as TensorFlow and JAX do, more on the right and below.
        own_layers: a ViT has R2O's layers of C4 and C5.
        grid: side of the stored position embedding in patches.
    """

    name: str
    heads: int | None = None
    stride_in_1x1: bool = False
    same_padding: bool = False
    own_layers: bool = False
    grid: int = 14
