"""What ranks exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from pipeline.foundation.errors import AgreedError, InputError
from train.distributed.world import World

T = TypeVar("T")


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """The element-wise sum over ranks, the same on each; no gradient flows."""
    total = values.detach().clone()
    if world.size > 1:
        dist.all_reduce(total)
    return total


class GatheredRows(NamedTuple):
    """The rows of every rank, in the order of ranks, and where this rank's begin."""

    values: Tensor
    first: int


def gather_rows(values: Tensor, world: World) -> GatheredRows:
    """Collect a tensor of the same shape from every rank; gradients flow back to the rank they belong to."""
    if world.size == 1:
        return GatheredRows(values, 0)
    return GatheredRows(_AllGather.apply(values), world.rank * len(values))


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def texts_of_all(text: str, world: World) -> list[str]:
    """Every rank's text, on each."""
    if world.size == 1:
        return [text]
    data = torch.frombuffer(bytearray(text.encode() + b"\n"), dtype=torch.uint8).to(world.device)
    sizes = [torch.zeros(1, dtype=torch.long, device=world.device) for _ in range(world.size)]
    dist.all_gather(sizes, torch.tensor([len(data)], device=world.device))
    longest = max(int(size) for size in sizes)
    padded = [torch.zeros(longest, dtype=torch.uint8, device=world.device) for _ in range(world.size)]
    dist.all_gather(padded, F.pad(data, (0, longest - len(data))))
    return [bytes(p[: int(n) - 1].cpu().numpy()).decode() for p, n in zip(padded, sizes, strict=True)]


def from_main(produce: Callable[[], str], world: World) -> str:
    """What `produce` gives on the main rank, on each. Where input or disk fail it there, all raise AgreedError."""
    told = ""
    if world.is_main:
        try:
            told = "=" + produce()
        except InputError as error:
            told = "!" + str(error)
        except OSError as error:
            told = f"!{error.filename or 'the run folder'}: {error.strerror}; make it writable, or make room"
    told = texts_of_all(told, world)[0]
    if told.startswith("!"):
        raise AgreedError(told[1:])
    return told[1:]


def agreed(work: Callable[[], T], world: World) -> T:
    """What `work` gives on this rank. Where input or disk fail it on one of them, all raise AgreedError."""
    told, found = "", None
    try:
        found = work()
    except InputError as error:
        told = str(error)
    except OSError as error:
        told = f"{error.filename or 'a file'}: {error.strerror}; put that right"
    if failed := [text for text in texts_of_all(told, world) if text]:
        raise AgreedError(failed[0])
    return cast(T, found)


def copy_from_main(tensors: Iterable[Tensor], world: World) -> None:
    """Give every rank the main rank's values, in place."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
