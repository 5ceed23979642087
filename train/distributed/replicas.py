"""A model that is the same on every rank: averaged gradients, batch statistics over all ranks."""

from __future__ import annotations

import inspect
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from train.distributed.batch_norm import with_global_batch_norm
from train.distributed.world import World


def distribute(model: nn.Module, world: World) -> nn.Module:
    """The model with batch statistics over all ranks and gradients averaged over them; unchanged in a world of one."""
    if world.size == 1:
        return model
    # mkldnn lays out the gradients of 1 × 1 convolutions in its own way; DDP copies them, and says so every time
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(with_global_batch_norm(model), device_ids=device_ids, **_DDP)


def only_local(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, backward passes add to the gradients without averaging them over ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


# Gradients are averaged bucket by bucket while the backward pass goes on, and lie in the buckets themselves.
# Global batch norms keep the buffers of all ranks equal. torch 2.15 renamed the argument that says so.
_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
_LOCAL_BUFFERS = next(n for n in _BUFFERS if n in inspect.signature(DistributedDataParallel.__init__).parameters)
_DDP: dict[str, Any] = {_LOCAL_BUFFERS: False, "gradient_as_bucket_view": True}
