"""How many kernels and copies some code would start on a GPU; none is needed."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OF_MEMORY = {"empty", "unsqueeze", "slice", "view", "unsafe_view", "select", "unbind", "expand", "permute", "transpose"}


class Launches(TorchDispatchMode):
    """Counts the operations that give something on a GPU, other than memory or another view of it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        there = any(isinstance(value, torch.Tensor) and value.device.type == "cuda" for value in tree_leaves(out))
        self.count += there and func.overloadpacket.__name__.lstrip("_") not in OF_MEMORY
        return out
