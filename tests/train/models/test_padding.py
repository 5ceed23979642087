"""Padding "SAME" against a loop over cells."""

import numpy as np
import pytest
import torch
from torch import nn

from train.models.backbone import ResNetBackbone
from train.models.padding import SameConv2d, pad_as_same


def same_by_loop(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's definition: ⌈n/s⌉ outputs, and of the padding that they need the smaller half left and above."""
    out_channels, _, size, _ = kernel.shape
    height, width = x.shape[1:]
    rows, columns = -(-height // stride), -(-width // stride)
    top = max((rows - 1) * stride + size - height, 0) // 2
    left = max((columns - 1) * stride + size - width, 0) // 2
    out = np.zeros((out_channels, rows, columns))
    for row in range(rows):
        for column in range(columns):
            for i in range(size):
                for j in range(size):
                    y, z = row * stride + i - top, column * stride + j - left
                    if 0 <= y < height and 0 <= z < width:
                        out[:, row, column] += kernel[:, :, i, j] @ x[:, y, z]
    return out


@pytest.mark.parametrize(("size", "height", "width"), [(3, 8, 6), (7, 10, 9), (1, 5, 8), (3, 7, 7)])
def test_strided_convolutions_equal_a_loop(size: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    convolution = SameConv2d(2, 3, size, stride=2, bias=False)
    x = torch.randn(2, 2, height, width, generator=generator)
    expected = [same_by_loop(one.numpy(), convolution.weight.detach().numpy(), 2) for one in x]
    torch.testing.assert_close(convolution(x), torch.tensor(np.stack(expected), dtype=torch.float32))


def test_a_resnet_keeps_its_weights_and_sizes_but_not_its_padding() -> None:
    torch.manual_seed(0)
    ours, same = ResNetBackbone("resnet18").eval(), ResNetBackbone("resnet18").eval()
    pad_as_same(same)
    same.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert same(x).c5.shape == ours(x).c5.shape
    assert not torch.allclose(same(x).c5, ours(x).c5, atol=1e-3)
    assert same(x[:, :, :63, :50]).c5.shape[2:] == (2, 2)
    strided = [m for m in same.modules() if isinstance(m, nn.Conv2d) and m.stride[0] > 1]
    assert all(isinstance(m, SameConv2d) for m in strided)
    assert len(strided) == 7


def test_a_maximum_is_of_real_cells_alone() -> None:
    """3 × 3 cells at stride 2 after one row and column below and to the right; all are negative."""
    model = nn.Sequential(nn.MaxPool2d(3, 2, 1))
    pad_as_same(model)
    x = -torch.arange(1.0, 17).view(1, 1, 4, 4)
    assert model(x).flatten().tolist() == [-1, -3, -9, -11]
