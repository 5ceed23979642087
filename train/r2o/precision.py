"""What stays in float32 while networks compute in half precision: masks, pooling, K-means and loss."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Within it, autocast rounds no product on the device of `like`."""
    return torch.autocast(like.device.type, enabled=False)


def at_least_float(values: Tensor) -> Tensor:
    """Half precisions as float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
