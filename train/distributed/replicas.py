"""A model that is the same on every rank: averaged gradients, batch statistics over all ranks."""

from __future__ import annotations

import inspect
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from train.distributed.world import World


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
        output: Tensor
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
