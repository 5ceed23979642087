"""Convolutions as products: values and gradients against torch's convolution in float64, and where they are used."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.models.backbone import build_backbone
from train.models.small_maps import SmallMapConv2d


def inputs(channels: int, size: tuple[int, int], *, count: int = 3) -> Tensor:
    return torch.randn(count, channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [((3, 3), 1, 1, (2, 2)), ((3, 3), 2, 1, (5, 3)), ((1, 1), 2, 0, (4, 4)), ((2, 3), (2, 1), (0, 1), (4, 5))],
)
def test_values_and_gradients_are_the_convolution_s(
    kernel: tuple[int, int], stride: int, padding: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    layer = SmallMapConv2d(4, 6, kernel, stride=stride, padding=padding).double()  # type: ignore[arg-type]
    ours = inputs(4, size).contiguous(memory_format=memory_format).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    made = layer(ours)
    expected = F.conv2d(theirs, layer.weight, layer.bias, stride=stride, padding=padding)
    weigh = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(made, expected, rtol=1e-12, atol=1e-12)
    of_ours = torch.autograd.grad((made * weigh).sum(), [ours, layer.weight, layer.bias])  # type: ignore[list-item]
    of_theirs = torch.autograd.grad((expected * weigh).sum(), [theirs, layer.weight, layer.bias])  # type: ignore[list-item]
    torch.testing.assert_close(of_ours, of_theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "size", "is_product"),
    [
        (SmallMapConv2d(2, 2, 3, padding=1), (4, 4), True),
        (SmallMapConv2d(2, 2, 3, padding=1), (17, 1), False),
        (SmallMapConv2d(2, 2, 3, padding=1), (16, 1), True),
        (SmallMapConv2d(2, 2, 3, padding=2, dilation=2), (4, 4), False),
        (SmallMapConv2d(2, 2, 3, padding=1, groups=2), (4, 4), False),
        (SmallMapConv2d(2, 2, 3, padding=1, padding_mode="circular"), (4, 4), False),
    ],
)
def test_few_cells_and_plain_layers_alone_are_products(
    layer: SmallMapConv2d, size: tuple[int, int], is_product: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(
        nn.Conv2d, "forward", lambda self, x: calls.append(x) or self._conv_forward(x, self.weight, self.bias)
    )
    x = inputs(2, size).float()
    made = layer(x)
    assert (not calls) == is_product
    torch.testing.assert_close(made, layer._conv_forward(x, layer.weight, layer.bias))
    assert calls or made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_backbone_is_torchvision_s_but_for_the_order_of_sums(dtype: torch.dtype | None) -> None:
    ours = build_backbone("resnet18", seed=0)
    theirs = copy.deepcopy(ours)
    for module in theirs.modules():
        if type(module) is SmallMapConv2d:
            module.__class__ = nn.Conv2d
    assert sum(type(module) is SmallMapConv2d for module in ours.modules()) == 5  # conv5's four, and its shortcut
    x = inputs(3, (64, 64), count=8).float()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        features, expected = ours(x), theirs(x)
    assert features.c5.dtype == expected.c5.dtype
    assert torch.equal(features.c4, expected.c4)
    error = (features.c5.float() - expected.c5.float()).norm() / expected.c5.float().norm()
    assert error < (1e-6 if dtype is None else 1e-2)
