"""Whole images to the size that a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def resized(pixels: Tensor, size: int) -> Tensor:
    """uint8 (3, H, W) → (3, size, size), bicubic and antialiased, as Pillow does within rounding."""
    # On a CPU uint8 has kernels of its own, four times as fast as Pillow's (docs/benchmarks.md); CUDA has floats only.
    # The fastest of them take channels last, and know it by the stride of the batch, which one image alone leaves open.
    if pixels.device.type == "cpu":
        rows = pixels.permute(1, 2, 0).contiguous().unsqueeze(0)
        return F.interpolate(rows.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True)[0]
    return resized_together([pixels.float()], size)[0]


def resized_together(floats: Sequence[Tensor], size: int) -> Tensor:
    """float32 (3, H, W), each of its own size → uint8 (n, 3, size, size), as `resized`; all are rounded at once."""
    resampled = [F.interpolate(one.unsqueeze(0), (size, size), mode="bicubic", antialias=True) for one in floats]
    return torch.cat(resampled).round_().clamp_(0, 255).to(torch.uint8)
