"""LARS as BYOL uses it (A.1; DeepMind's form, where the learning rate comes last)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, by multi-tensor operations.

    Per tensor: g ← g + λw; g ← g · η‖w‖/‖g‖ (1 where a norm is 0); m ← μm + g; w ← w - lr·m.
    Tensors of at most one dimension (biases, batch norm) are neither decayed nor adapted, nor are those of a group
    with `"adapt": False`; all of a group with `"adapt": "always"` are. No Nesterov.

    Args:
        lr: set `param_groups[...]["lr"]` before each step to follow a schedule.
        trust_coefficient: η.
        form: `deepmind`, as above; `release`: the ratio is η‖w‖/(‖g‖ + λ‖w‖), and m ← μm + lr·g; w ← w - m.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust_coefficient: float = 1e-3,
        form: str = "deepmind",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "form": form,
            "adapt": True,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        fewest = {"always": 0, True: 2}.get(group["adapt"], math.inf)  # dimensions of what is adapted
        adapted = [p for p in parameters if p.ndim >= fewest]
        plain = [p for p in parameters if p.ndim < fewest]
        is_release = group["form"] == "release"
        updates = (
            _adapted_gradients(adapted, group["weight_decay"], group["trust_coefficient"], norm_of_sum=not is_release)
            if adapted
            else []
        )
        updates += [p.grad for p in plain if p.grad is not None]
        ordered = [*adapted, *plain]
        buffers = [self.momentum_buffer(p) for p in ordered]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates, alpha=group["lr"] if is_release else 1.0)
        torch._foreach_add_(ordered, buffers, alpha=-1.0 if is_release else -group["lr"])

    def momentum_buffer(self, parameter: Tensor) -> Tensor:
        """m of a parameter; zeros before its first update."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _adapted_gradients(
    parameters: list[Tensor], weight_decay: float, trust_coefficient: float, *, norm_of_sum: bool
) -> list[Tensor]:
    """(g + λw) · η‖w‖/‖g + λw‖ for each tensor; with ‖g‖ + λ‖w‖ below the line unless `norm_of_sum`."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    decayed = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))
    weight_norms = torch.stack(torch._foreach_norm(parameters))
    gradient_norms = torch.stack(torch._foreach_norm(decayed if norm_of_sum else gradients))
    usable = (weight_norms > 0) & (gradient_norms > 0)
    below = gradient_norms if norm_of_sum else gradient_norms + weight_decay * weight_norms
    ratios = torch.where(usable, trust_coefficient * weight_norms / below, 1.0)
    torch._foreach_mul_(decayed, list(ratios.unbind()))
    return decayed
