"""Trunks that give C4 and C5. State dicts have torchvision's keys, so a backbone loads anywhere a ResNet does."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


class Features(NamedTuple):
    """Feature maps at 1/16 (`c4`) and 1/32 (`c5`) of the input's size."""

    c4: Float[Tensor, "b c4 h4 w4"]
    c5: Float[Tensor, "b c5 h5 w5"]


class ResNetBackbone(resnet.ResNet):
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
        if dilate_c5:
            _dilate(self.layer4)

    def forward_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c4 h4 w4"]:
        """C4 alone, without the cost of C5."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer3(self.layer2(self.layer1(x)))

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


def _dilate(stage: nn.Module) -> None:
    """Stride 1 everywhere and dilation 2 in every 3×3 convolution of a stage."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation, module.padding = (2, 2), (2, 2)


def feature_size(image_size: int, stride: int) -> int:
    """Height and width of a feature map of stride 16 or 32: every halving rounds up."""
    while stride > 1:
        image_size, stride = (image_size + 1) // 2, stride // 2
    return image_size


def build_backbone(name: str, *, seed: int, dilate_c5: bool = False) -> ResNetBackbone:
    """A backbone with random weights that depend on `seed` alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNetBackbone(name, dilate_c5=dilate_c5)
