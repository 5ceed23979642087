"""What a backbone is beside its weights: all that decides how it is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.foundation.errors import InputError
from train.models.backbone import VIT_SIZES, Backbone, ResNetBackbone, make_backbone, resnet_blocks
from train.models.padding import pad_as_same
from train.models.plain_vit import PlainViT, resized_embedding

AnyBackbone = Backbone | PlainViT
POSITIONS = "encoder.pos_embedding"
_WIDTHS = {384: "vit_s", 768: "vit_b", 1024: "vit_l"}
_PLAIN_VITS = {"vit_s": (384, 12, 6), "vit_b": (768, 12, 12), "vit_l": (1024, 24, 16)}  # width, depth, heads
BACKBONES = (*resnet_blocks(), *(f"{size}_{patch}" for size in _PLAIN_VITS for patch in (8, 14, 16, 32)))


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a backbone is built.

    Attributes:
        name: resnet18 … resnet152, or vit_<s, b or l>_<side of a patch>.
        heads: of a ViT's attention where they are not the usual number; MoCo v3's ViT-S has 12.
        stride_in_1x1: a bottleneck halves its input by the first 1 × 1 convolution, as MSRA's ResNets do.
        same_padding: strided layers pad as TensorFlow and JAX do, more on the right and below.
        own_layers: a ViT has R2O's layers of C4 and C5.
        grid: side of the stored position embedding in patches.
    """

    name: str
    heads: int | None = None
    stride_in_1x1: bool = False
    same_padding: bool = False
    own_layers: bool = False
    grid: int = 14

    @property
    def patch(self) -> int | None:
        """The side of a ViT's patch in pixels; None for a ResNet."""
        return int(self.name.rpartition("_")[2]) if self.name.startswith("vit") else None

    def build(self, *, dilate_c5: bool = False, image_size: int | None = None) -> AnyBackbone:
        """A new module, with weights from the global generator.

        Args:
            image_size: that a ViT's position embedding is for; None: that of the stored one.
        """
        size = image_size or self.grid * (self.patch or 16)
        if self.patch is not None and dilate_c5:
            raise InputError(f"{self.name} has no C5 stage to dilate; set dilate_c5=false")
        if self.patch is not None and not self.own_layers:
            width, depth, heads = _PLAIN_VITS[self.name.rpartition("_")[0]]
            return PlainViT(width=width, depth=depth, heads=self.heads or heads, patch=self.patch, image_size=size)
        model = make_backbone(self.name, dilate_c5=dilate_c5, image_size=size)
        if isinstance(model, ResNetBackbone):
            if self.stride_in_1x1:
                _move_strides(model)
            if self.same_padding:
                pad_as_same(model)
        return model

    def filled(
        self, weights: Mapping[str, Tensor], *, dilate_c5: bool = False, image_size: int | None = None
    ) -> AnyBackbone:
        """A new module with these weights, exactly; a ViT's position embedding is interpolated to `image_size`."""
        with torch.device("meta"):
            model = self.build(dilate_c5=dilate_c5, image_size=image_size)
        if self.patch is not None and image_size:
            side = image_size // self.patch
            weights = {**weights, POSITIONS: resized_embedding(weights[POSITIONS], (side, side))}
        model.load_state_dict({key: value.clone() for key, value in weights.items()}, strict=True, assign=True)
        return model

    def shapes(self) -> dict[str, Tensor]:
        """Our keys, with tensors that have shape and dtype only."""
        with torch.device("meta"):
            expected: dict[str, Tensor] = self.build().state_dict()
        return expected


def form_named(name: str, *, own_layers: bool = False) -> Form:
    """The usual form of a name."""
    return Form(name=name, own_layers=own_layers and name in VIT_SIZES)


def form_of(weights: Mapping[str, Tensor], *, asked: str | None = None) -> Form | None:
    """The form of weights by our keys, by their names and shapes; None where they are of no backbone that r2o has.

    Args:
        asked: the name that is preferred where several have such weights.
    """
    if any(key.startswith("encoder.") or key == "conv_proj.weight" for key in weights):
        return _vit_of(weights)
    stages = [0, 0, 0, 0]
    for key in weights:
        if found := re.match(r"layer([1-4])\.(\d{1,3})\.", key):
            stages[int(found[1]) - 1] = max(stages[int(found[1]) - 1], int(found[2]) + 1)
    blocks = (any(".conv3." in key for key in weights), tuple(stages))
    names = [name for name, its in resnet_blocks().items() if its == blocks]
    return Form(name=asked if asked in names else names[0]) if names else None


def _vit_of(weights: Mapping[str, Tensor]) -> Form | None:
    patches, positions = weights.get("conv_proj.weight"), weights.get(POSITIONS)
    if patches is None or positions is None or patches.ndim != 4 or positions.ndim != 3:
        return None
    size = _WIDTHS.get(patches.shape[0])
    name = f"{size}_{patches.shape[-1]}"
    grid = round((positions.shape[1] - 1) ** 0.5)
    if name not in BACKBONES or grid**2 != positions.shape[1] - 1 or grid < 1:
        return None
    own = name in VIT_SIZES and any(key.startswith(("c4_layer.", "c5_layer.")) for key in weights)
    return Form(name=name, own_layers=own, grid=grid)


def _move_strides(model: ResNetBackbone) -> None:
    """The stride of a bottleneck from its 3 × 3 convolution to the 1 × 1 before it (He et al. 2016, as released)."""
    for stage in (model.layer2, model.layer3, model.layer4):
        block = stage[0]
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
