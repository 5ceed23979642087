"""Padding "SAME" of TensorFlow and JAX, for weights that were trained with it."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class SamePadding(nn.Module):
    """Pads so that a layer of stride s gives ⌈n/s⌉ of n rows and columns; an odd rest goes right and below.

    Args:
        kernel, stride: of the layer that follows.
        value: what is padded with; minus infinity before a maximum.
    """

    def __init__(self, *, kernel: int, stride: int, value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.stride, self.value = kernel, stride, value

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c ph pw"]:
        """The padded maps."""
        total = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in (x.shape[3], x.shape[2])]
        left, top = total[0] // 2, total[1] // 2
        return F.pad(x, (left, total[0] - left, top, total[1] - top), value=self.value)


class SameConv2d(nn.Conv2d):
    """A strided convolution that pads as "SAME" does; its weights have the names of an nn.Conv2d's."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d ph pw"]:
        """The convolved maps."""
        padding = SamePadding(kernel=self.kernel_size[0], stride=self.stride[0])
        return F.conv2d(padding(x), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_as_same(model: nn.Module) -> None:
    """Make every strided convolution and the max pooling of a ResNet pad as "SAME" does; names and weights stay.

    At stride 1 both paddings are equal.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d) and child.stride[0] > 1:
            child.__class__ = SameConv2d
        elif isinstance(child, nn.MaxPool2d):
            kernel, stride = child.kernel_size, child.stride
            assert isinstance(kernel, int)
            assert isinstance(stride, int)
            pooling = nn.MaxPool2d(kernel, stride)
            padding = SamePadding(kernel=kernel, stride=stride, value=float("-inf"))
            setattr(model, name, nn.Sequential(padding, pooling))
        else:
            pad_as_same(child)
