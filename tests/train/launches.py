"""What a step would ask of a GPU: kernels, exchanges and waits of the host, counted where there is none.

Tensors are torch's `meta` tensors: they have a device that is no CPU, and no values. What the step asks them for is
answered with ones. So it is a step's own Python that runs, backward pass and all, and takes no time to compute.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
DEVICE = torch.device("meta")
ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view")
MOVES = ("_to_copy", "copy_")
WITHOUT_META: dict[str, Callable[..., Any]] = {  # shapes of what torch itself computes on CPU or CUDA alone
    "batch_norm_update_stats": lambda x, *_: tuple(_of_channels(x) for _ in range(2)),
    "batch_norm_backward_reduce": lambda gradient, x, *_: tuple(_of_channels(x) for _ in range(4)),
    "batch_norm_backward_elemt": lambda gradient, x, *_: torch.empty_like(x),
}


def _of_channels(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape[1], device=DEVICE)


class Launches(TorchDispatchMode):
    """Counts of a block.

    Attributes:
        kernels: operators that compute, by name; a CUDA device takes about one launch for each.
        exchanges: collectives between ranks.
        waits: whatever makes the host wait for the device, in order.
        mixed: operators with tensors of two devices.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.exchanges: Counter[str] = Counter()
        self.waits: list[str] = []
        self.mixed: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on tensors without values."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        on_device = any(t.device == DEVICE for t in given)
        if func is aten._local_scalar_dense.default and on_device:
            self.waits.append("a number is read")
            return 1.0
        if func is aten.nonzero.default and on_device:
            self.waits.append("rows are counted")
            return torch.empty(4, args[0].dim(), dtype=torch.long, device=DEVICE)
        if name in MOVES:
            to = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or args[0].device)
            source = args[1] if name == "copy_" else args[0]
            waited_for = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if on_device and to != source.device and (waited_for or to.type == "cpu"):
                self.waits.append(f"a copy to {to.type}")
            if to.type == "cpu" and on_device:
                return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        elif on_device and any(t.device != DEVICE and t.dim() > 0 for t in given):
            self.mixed.append(name)
        make = WITHOUT_META.get(name, func)
        made = make(*args, **kwargs)
        if on_device or any(isinstance(t, torch.Tensor) and t.device == DEVICE for t in tree_leaves(made)):
            self._count(func, name)
        return made

    def _count(self, func: Any, name: str) -> None:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.exchanges[name] += 1
            return
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and name not in ALLOCATES:
            self.kernels[name] += 1


@contextlib.contextmanager
def launches() -> Iterator[Launches]:
    """Count a block's; autocast knows no `meta`, so that casts of weights are not among them."""
    with patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()), Launches() as counted:
        yield counted
