"""A state on the device, copied to host memory while the device goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """Copies of a nested state, taken again and again; of tensors on a GPU into memory that is pinned once.

    Some 900 copies that each wait for the GPU would hold up its queue. These are put into the queue of the current
    stream instead, so before whatever is queued there later, such as the next update. Another thread can wait for them.
    Pinned memory costs as much of the host as one state, for good. A copy on the GPU would cost as much of the GPU.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Tensor] = {}

    def take(self, value: Any) -> tuple[Any, Callable[[], None]]:
        """Copies of all tensors in nested dicts and lists, on the CPU, and what to call before they are read.

        The copies of the call before are overwritten.
        """
        devices: set[torch.device] = set()
        copied = self._copied(value, (), devices)
        waits = [queued_until_now(device) for device in devices]

        def wait() -> None:
            for one in waits:
                one()

        return copied, wait

    def _copied(self, value: Any, place: tuple[Any, ...], devices: set[torch.device]) -> Any:
        if isinstance(value, Tensor):
            if not is_on_gpu(value):
                return value.detach().to("cpu", copy=True)
            devices.add(value.device)
            return self._queued(value.detach(), place)
        if isinstance(value, dict):
            return {key: self._copied(one, (*place, key), devices) for key, one in value.items()}
        if isinstance(value, list):
            return [self._copied(one, (*place, number), devices) for number, one in enumerate(value)]
        return value

    def _queued(self, value: Tensor, place: tuple[Any, ...]) -> Tensor:
        kept = self._kept.get(place)
        if kept is None or (kept.shape, kept.dtype, kept.stride()) != (value.shape, value.dtype, value.stride()):
            kept = self._kept[place] = pinned_like(value)
        queue_copy(kept, value)
        return kept


def is_on_gpu(value: Tensor) -> bool:
    """Whether copying it to the host waits for a queue."""
    return value.device.type == "cuda"


def pinned_like(value: Tensor) -> Tensor:
    """Host memory of the same form that the GPU writes to by itself."""
    return torch.empty_like(value, device="cpu", pin_memory=True)


def queue_copy(into: Tensor, value: Tensor) -> None:
    """Copy where the current stream has come so far; does not wait."""
    into.copy_(value, non_blocking=True)


def queued_until_now(device: torch.device) -> Callable[[], None]:
    """What waits for all that the current stream of a GPU has in its queue now."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
