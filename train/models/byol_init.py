"""Random weights as BYOL and DetCon draw them: Haiku's defaults, and residual blocks that begin as the identity."""

from __future__ import annotations

import math

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck


@torch.no_grad()
def draw_as_byol(module: nn.Module) -> None:
    """Draw all weights of a ResNet or a head anew, in place, from the global generator.

    Convolutions and linear layers get a normal of standard deviation 1/√fan_in that is cut off at two of them (Haiku's
    `TruncatedNormal`; so the deviation of what is drawn is 0.88/√fan_in); biases 0; batch norms gain 1. The last gain
    of each bottleneck block is 0, so that the block begins as its shortcut. Haiku's blocks of ResNet-18 and 34 have no
    such zero, nor have ours.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            deviation = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.reset_parameters()
    for layer in module.modules():
        if isinstance(layer, Bottleneck):
            layer.bn3.weight.zero_()
