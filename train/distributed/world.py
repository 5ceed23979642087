"""Ranks and what they exchange; the only file that knows torch.distributed."""

from __future__ import annotations

import inspect
import os
import re
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pipeline.foundation.errors import AgreedError, InputError
from train.r2o.loss import Everywhere, Gather, only_here

FIRST_PORT, PORTS = 20_000, 10_000  # where the ranks of a Slurm job meet, by its number


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0


def adopt_ranks() -> None:
    """Set torchrun's variables from those of srun, where this process was started by it and not by torchrun.

    `SLURM_STEP_…` are set for the tasks of srun alone; a batch script, which is no rank, has none of them.
    Ranks are taken to fill one node after the other (srun's default).

    Raises:
        InputError: srun's variables are incomplete.
    """
    given = os.environ
    if "RANK" in given or int(given.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return
    try:
        tasks, node = _repeated(given["SLURM_STEP_TASKS_PER_NODE"]), int(given["SLURM_NODEID"])
        found = {
            "RANK": given["SLURM_PROCID"],
            "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": given["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(tasks[node]),
            "MASTER_ADDR": _first_host(given["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(FIRST_PORT + (int(given["SLURM_JOB_ID"]) + 97 * int(given["SLURM_STEP_ID"])) % PORTS),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"srun's environment does not tell the ranks ({error!r}); start with torchrun") from None
    given.update({name: given.get(name, value) for name, value in found.items()})


def _repeated(counts: str) -> list[int]:
    """Slurm's short form of a list: "8(x3),4" is 8, 8, 8, 4."""
    parts = [part.removesuffix(")").partition("(x") for part in counts.split(",")]
    return [int(count) for count, _, times in parts for _ in range(int(times or 1))]


def _first_host(nodelist: str) -> str:
    """The first of Slurm's list of hosts: "gpu-[07-09,12],login" is gpu-07, …"""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if first is None:
        raise ValueError(f"no host in {nodelist!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def num_ranks() -> int:
    """How many processes there are, by torchrun's variables."""
    return int(os.environ.get("WORLD_SIZE", 1))


def node_ranks() -> range:
    """The ranks of this process's node, by torchrun's variables."""
    rank, size = int(os.environ.get("RANK", 0)), num_ranks()
    first = rank - int(os.environ.get("LOCAL_RANK", 0))
    return range(first, min(first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)), size))


@contextmanager
def world_from_environment(*, timeout_minutes: float = 10.0) -> Iterator[World]:
    """The process group that torchrun's variables describe (NCCL with a GPU, gloo without), or a world of one.

    Args:
        timeout_minutes: a collective that takes longer fails.
    Raises:
        InputError: a node has fewer GPUs than processes, or the others do not come.
        LostRankError: a collective failed within.
    """
    size, device = num_ranks(), _device(int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1:
        yield World(0, 1, device)
        return
    rank, cuda, timeout = int(os.environ["RANK"]), device.type == "cuda", timedelta(minutes=timeout_minutes)
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=_store_of_this_start(rank, size, timeout),
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device if cuda else None,
        )
    except dist.DistStoreError as error:
        raise InputError(
            f"rank {rank} waited {timeout_minutes:g} minutes for the others at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({str(error).partition('.')[0]})"
        ) from None
    try:
        yield World(dist.get_rank(), size, device)
        dist.barrier()
    except RuntimeError as error:
        if not _is_of_collective(error):
            raise
        raise LostRankError(dist.get_rank(), str(error)) from error
    finally:
        dist.destroy_process_group()


def _store_of_this_start(rank: int, size: int, timeout: timedelta) -> Store:
    """Where the ranks meet; of torchrun's, a part that no earlier start has written to.

    The store of torchrun's agent outlives the ranks that it restarts, and what these left in it would be taken for the
    new ones' addresses; its count of restarts is not the same on all nodes. So the first rank names this start, and
    tells each other one by a token that only that process can have written.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return TCPStore(address, port, is_master=rank == 0, timeout=timeout)
    store, token = TCPStore(address, port, is_master=False, timeout=timeout), secrets.token_hex(8)
    if rank:
        store.set(f"r2o/hello/{rank}", token)
        name = store.get(f"r2o/welcome/{token}").decode()
        store.add(f"r2o/here/{name}", 1)
    else:
        name = token
        _welcome_others(store, name, size, timeout)
    return PrefixStore(f"r2o/{name}", store)


def _welcome_others(store: Store, name: str, size: int, timeout: timedelta) -> None:
    """Answer every rank's hello with the name of this start, also what dead ones left, until all are here."""
    answered: set[bytes] = set()
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(f"r2o/here/{name}", 0) < size - 1:
        if time.monotonic() > deadline:
            raise dist.DistStoreError("some never said hello")
        for key in (f"r2o/hello/{other}" for other in range(1, size)):
            if store.check([key]) and (hello := store.get(key)) not in answered:
                store.set(f"r2o/welcome/{hello.decode()}", name)
                answered.add(hello)
        time.sleep(0.02)


class LostRankError(Exception):
    """A collective failed: another rank died, hangs, or its node cannot be reached."""

    def __init__(self, rank: int, cause: str) -> None:
        text = re.sub(r"^\[[^\]]*\] ", "", cause.strip().splitlines()[0]).partition(". ")[0]
        super().__init__(
            f"rank {rank} lost the others: one of them has died or hangs, and its own message says why ({text})"
        )


def _is_of_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _device(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 1 and "SLURM_PROCID" in os.environ:  # srun --gpus-per-task=1 shows each task its own
        local_rank = 0
    if local_rank >= visible:
        raise InputError(f"process {local_rank} of this node has no GPU, {visible} are visible; start fewer processes")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def distribute(model: nn.Module, world: World) -> nn.Module:
    """The model with batch statistics over all ranks and gradients averaged over them; unchanged in a world of one."""
    if world.size == 1:
        return model
    # mkldnn lays out the gradients of 1 × 1 convolutions in its own way; DDP copies them, and says so every time
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    if world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[world.device.index], **_DDP)
    return DistributedDataParallel(_with_global_batch_norm(model), **_DDP)


def only_local(model: nn.Module) -> AbstractContextManager[None]:
    """Within it, backward passes add to the gradients without averaging them over ranks."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


# Gradients are averaged bucket by bucket while the backward pass goes on, and lie in the buckets themselves.
# Global batch norms keep the buffers of all ranks equal. torch 2.15 renamed the argument that says so.
_BUFFERS = ("forward_sync_buffers", "broadcast_buffers")
_LOCAL_BUFFERS = next(n for n in _BUFFERS if n in inspect.signature(DistributedDataParallel.__init__).parameters)
_DDP: dict[str, Any] = {_LOCAL_BUFFERS: False, "gradient_as_bucket_view": True}


def sum_over_ranks(values: Tensor, world: World) -> Tensor:
    """The element-wise sum over ranks, the same on each; no gradient flows."""
    total = values.detach().clone()
    if world.size > 1:
        dist.all_reduce(total)
    return total


def gather_rows(world: World) -> Gather:
    """What collects a tensor of the same shape from every rank; gradients flow back to the rank they belong to."""
    if world.size == 1:
        return only_here
    return lambda values: Everywhere(_AllGather.apply(values), world.rank * len(values))


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


def copy_from_main(tensors: Iterable[Tensor], world: World) -> None:
    """Give every rank the main rank's values, in place."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def wait_for_all(world: World) -> None:
    """Return once every rank is here."""
    if world.size > 1:
        dist.barrier()


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all ranks, for CPU tensors, which torch.nn.SyncBatchNorm refuses.

    Same state dict and same values as one batch norm over the concatenated batch; ranks may hold different numbers
    of rows, also none. Where the ranks hold one row together, its variance is 0.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, f"expected at least 2 dimensions, got {input.dim()}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input, (N, C, …)."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _GlobalBatchNormFunction.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and count > 1:
            self._move_running_statistics(mean, variance * count / (count - 1))
        return output

    def _move_running_statistics(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased_variance, self.momentum)


class _GlobalBatchNormFunction(torch.autograd.Function):
    """Native kernels for what is local; between them, ranks exchange 2C + 1 numbers forward and 2C backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, rows = x.shape[1], x.numel() // x.shape[1]
        local = torch.zeros(2 * channels + 1)
        if rows:
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
            local = torch.cat([mean.float(), variance.float(), torch.tensor([float(rows)])])
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local)
        every = torch.stack(gathered)
        means, variances, counts = every[:, :channels], every[:, channels:-1], every[:, -1:]
        count = counts.sum()
        mean = (counts * means).sum(0) / count.clamp(min=1)
        variance = (counts * (variances + (means - mean).square())).sum(0) / count.clamp(min=1)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        output = F.batch_norm(x, mean, variance, weight, bias, eps=eps) if rows else torch.empty_like(x)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        if x.numel():
            grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        totals = torch.cat([grad_bias, grad_weight])
        dist.all_reduce(totals)
        mean_grad, mean_grad_x_hat = (totals / count.clamp(min=1)).chunk(2)
        # dx = w/σ · (g - E[g] - x̂·E[g·x̂]); the kernel gave w/σ · g, the rest is linear in x
        inverse_std = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse_std.square() * mean_grad_x_hat
        constant = -weight * inverse_std * mean_grad - slope * mean
        shape = (1, -1, *(1 for _ in range(2, x.dim())))
        grad_x.addcmul_(x, slope.to(x.dtype).view(shape)).add_(constant.to(x.dtype).view(shape))
        return grad_x, grad_weight, grad_bias, None


def _with_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm below `module`, keeping parameters, buffers and their sharing."""
    for name, child in module.named_children():
        setattr(module, name, _with_global_batch_norm(child))
    if not isinstance(module, _BatchNorm):
        return module
    replacement = GlobalBatchNorm(module.num_features, module.eps, module.momentum)
    replacement.weight, replacement.bias = module.weight, module.bias
    replacement.running_mean, replacement.running_var = module.running_mean, module.running_var
    replacement.num_batches_tracked = module.num_batches_tracked
    return replacement.train(module.training)
