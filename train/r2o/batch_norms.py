"""What the batch norms of a network do besides normalising, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_norm_buffers_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms in train mode use the batch's statistics as ever, but do not move their running ones."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


@contextmanager
def batches_counted_at_once(module: nn.Module, times: int) -> Iterator[None]:
    """Count the batches that pass within for all batch norms together, by one kernel instead of one each."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    counters = {norm: norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None}
    for norm in counters:
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, counter in counters.items():
            norm.num_batches_tracked = counter
    if counters:
        torch._foreach_add_(list(counters.values()), times)
