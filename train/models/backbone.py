"""Trunks that give C4 and C5. State dicts have torchvision's keys, so a backbone loads anywhere a ResNet does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.vision_transformer import VisionTransformer

from pipeline.foundation.errors import InputError
from train.models.small_maps import multiply_small_maps

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


class Features(NamedTuple):
    """Feature maps at 1/16 (`c4`) and 1/32 (`c5`) of the input's size."""

    c4: Float[Tensor, "b c4 h4 w4"]
    c5: Float[Tensor, "b c5 h5 w5"]


# torchvision ships no types: to mypy its classes are Any
class ResNetBackbone(resnet.ResNet):  # type: ignore[misc]
    """torchvision's ResNet without its classifier.

    Args:
        name: resnet18, 34, 50, 101 or 152.
        dilate_c5: C5 keeps C4's resolution, its 3×3 convolutions dilated by 2 (A.2, after MoCo).
    """

    def __init__(self, name: str, *, dilate_c5: bool = False) -> None:
        block, layers = _ARCHITECTURES[name]
        super().__init__(block, layers)
        self.c4_channels, self.c5_channels = 256 * block.expansion, 512 * block.expansion
        del self.fc, self.avgpool
        multiply_small_maps(self.layer4)
        if dilate_c5:
            _dilate(self.layer4)

    def forward_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c4 h4 w4"]:
        """C4 alone, without the cost of C5."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c4: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return c4

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """C4 and C5 of normalised images."""
        c4 = self.forward_c4(images)
        return Features(c4, self.layer4(c4))


_ARCHITECTURES: dict[str, tuple[type[resnet.BasicBlock | resnet.Bottleneck], list[int]]] = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
    "resnet101": (resnet.Bottleneck, [3, 4, 23, 3]),
    "resnet152": (resnet.Bottleneck, [3, 8, 36, 3]),
}


def resnet_blocks() -> dict[str, tuple[bool, tuple[int, ...]]]:
    """Name of a ResNet → whether its blocks are bottlenecks, and their number in each stage."""
    return {name: (block is resnet.Bottleneck, tuple(layers)) for name, (block, layers) in _ARCHITECTURES.items()}


def _dilate(stage: nn.Module) -> None:
    """Stride 1 everywhere and dilation 2 in every 3×3 convolution of a stage."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation, module.padding = (2, 2), (2, 2)


# torchvision ships no types: to mypy its classes are Any
class ViTBackbone(VisionTransformer):  # type: ignore[misc]
    """torchvision's Vision Transformer of 16 × 16 patches without its classifier, with C4 and C5 after the last block.

    A.5 adds "transpose convolution layers on the feature maps in the final transformer block". We read: C4 is a
    transposed 3 × 3 convolution of the tokens' grid, which keeps its size (14 × 14 at 224 px), and C5 a 2 × 2
    convolution of stride 2 of C4 (7 × 7). C5 comes from C4, so that the layer whose output K-means clusters is learned.

    Args:
        name: vit_s_16 or vit_b_16.
        image_size: of all images, a multiple of 32; the position embedding is for it.
    """

    def __init__(self, name: str, *, image_size: int = 224) -> None:
        width, heads = VIT_SIZES[name]
        super().__init__(image_size, 16, num_layers=12, num_heads=heads, hidden_dim=width, mlp_dim=4 * width)
        self.c4_channels = self.c5_channels = width
        del self.heads
        self.c4_layer = nn.ConvTranspose2d(width, width, 3, padding=1)
        self.c5_layer = nn.Conv2d(width, width, 2, stride=2)

    def forward_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c4 h4 w4"]:
        """C4 alone: all blocks and the layer of C4."""
        tokens = self._process_input(images)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        encoded = self.encoder(tokens)[:, 1:].transpose(1, 2)
        c4: Tensor = self.c4_layer(encoded.unflatten(2, (images.shape[2] // 16, images.shape[3] // 16)))
        return c4

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Features:
        """C4 and C5 of normalised images."""
        c4 = self.forward_c4(images)
        return Features(c4, self.c5_layer(c4))


VIT_SIZES = {"vit_s_16": (384, 6), "vit_b_16": (768, 12)}  # width, heads
Backbone = ResNetBackbone | ViTBackbone


def make_backbone(name: str, *, dilate_c5: bool = False, image_size: int = 224) -> Backbone:
    """A backbone by name, with weights from the global generator.

    Raises:
        KeyError: the name is not known. InputError: `dilate_c5` of a ViT.
    """
    if name not in VIT_SIZES:
        return ResNetBackbone(name, dilate_c5=dilate_c5)
    if dilate_c5:
        raise InputError(f"{name} has no C5 stage to dilate; this evaluation takes ResNets")
    return ViTBackbone(name, image_size=image_size)


def build_backbone(name: str, *, seed: int, dilate_c5: bool = False, image_size: int = 224) -> Backbone:
    """A backbone with random weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_backbone(name, dilate_c5=dilate_c5, image_size=image_size)


def image_size_of(weights: Mapping[str, Tensor]) -> int:
    """The image size that a state dict's position embedding is for; 224 where it has none."""
    embedding = weights.get("encoder.pos_embedding")
    return 224 if embedding is None or embedding.ndim != 3 else 16 * math.isqrt(max(embedding.shape[1] - 1, 4))
