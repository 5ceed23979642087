"""The target network follows the online one (A.1)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, *, target_ema: float) -> None:
    """ξ ← τ·ξ + (1 - τ)·θ for every parameter (A.1).

    Buffers are left alone: the target's running statistics are its own, moved by its passes over the views.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - target_ema)
