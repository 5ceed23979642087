"""Convolutions of few cells as one matrix product, which CPUs do several times as fast."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Output cells of an image. At 2 × 2, which C5 of views of 64 px has, oneDNN's convolutions of 512 channels take 4 to 7
# times as long as the product; at 4 × 4 1.3 to 3 times (docs/log.md). Beyond, they win in fp32.
MOST_CELLS = 16


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is a matrix product on a CPU where its output has at most MOST_CELLS cells.

    The same weights, and the same result but for the order of sums.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o oh ow"]:
        """The convolution, one way or the other."""
        if input.device.type != "cpu" or not self._is_plain:
            return super().forward(input)
        size = self._output_size(input)
        if not 0 < size[0] * size[1] <= MOST_CELLS:
            return super().forward(input)
        (down, right), (rows, columns) = self.stride, size
        # Cells last, so that a tap is a run of channels: each output cell's patch is one row of the product.
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, self._pad[1], self._pad[1], self._pad[0], self._pad[0]))
        taps = [
            padded[:, i : i + down * (rows - 1) + 1 : down, j : j + right * (columns - 1) + 1 : right]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]
        patches = torch.cat(taps, 3).flatten(0, 2)
        made = F.linear(patches, self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)
        return made.view(len(input), rows, columns, self.out_channels).permute(0, 3, 1, 2)

    @property
    def _pad(self) -> tuple[int, int]:
        assert not isinstance(self.padding, str)
        return self.padding[0], self.padding[1]

    @property
    def _is_plain(self) -> bool:
        return self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"

    def _output_size(self, input: Tensor) -> tuple[int, int]:
        one, other = (
            (size + 2 * pad - kernel) // stride + 1
            for size, pad, kernel, stride in zip(input.shape[2:], self._pad, self.kernel_size, self.stride, strict=True)
        )
        return one, other


def multiply_small_maps(stage: nn.Module) -> None:
    """Make the convolutions of a stage such ones, in place; weights, names and random numbers stay."""
    for module in stage.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = SmallMapConv2d
