"""Batch norm over the rows of all ranks, on CPU and CUDA: one exchange forward, one backward, the host never waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """Batch norm over the rows of all ranks: state dict and values are those of one over the concatenated batch.

    Of rows (N, C, …), ranks may hold different numbers, also none; where they hold one together, its variance is 0, and
    the running statistics stay. Of images (N, C, H, W), every rank holds as many.
    torch.nn.SyncBatchNorm takes no CPU tensors, and makes the host wait three times a pass.

    Attributes:
        parts: the batch is so many equal parts, one after the other, each normalised by statistics of its own.
    """

    parts = 1

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, f"expected at least 2 dimensions, got {input.dim()}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalised input, (N, C, …)."""
        if not self.training:
            return super().forward(input)
        normalise = _opaque if torch.compiler.is_compiling() else _GlobalNormalisation.apply
        output: Tensor
        output, *statistics = normalise(input, self.weight, self.bias, self.eps, self.parts)
        mean, variance, count = (value.detach() for value in statistics)
        if self.track_running_stats:
            if _are_images(input):
                values = input.numel() // input.shape[1] // self.parts * dist.get_world_size()
                self._move_running_statistics(mean, variance * (values / max(values - 1, 1)), self.parts)
            else:
                enough = count > 1  # asked for by tensors alone, so that the host does not wait for the answer
                unbiased = variance * (count / (count - 1).clamp(min=1))
                assert self.running_mean is not None
                assert self.running_var is not None
                means = torch.where(enough, mean, self.running_mean)
                self._move_running_statistics(means, torch.where(enough, unbiased, self.running_var), enough.sum())
        return output

    def _move_running_statistics(self, means: Tensor, variances: Tensor, times: Tensor | int) -> None:
        """As torch's batch norm does, part after part."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        for one in zip(means, variances, strict=True):
            torch._foreach_lerp_([self.running_mean, self.running_var], list(one), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(times)


@contextmanager
def statistics_by_part(module: nn.Module, parts: int) -> Iterator[None]:
    """Within it, global batch norms take their batch for so many parts; see `GlobalBatchNorm.parts`."""
    norms = [m for m in module.modules() if isinstance(m, GlobalBatchNorm)]
    for norm in norms:
        norm.parts = parts
    try:
        yield
    finally:
        for norm in norms:
            norm.parts = 1


def with_global_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm below `module`, keeping parameters, buffers and their sharing."""
    for name, child in module.named_children():
        setattr(module, name, with_global_batch_norm(child))
    if not isinstance(module, _BatchNorm):
        return module
    replacement = GlobalBatchNorm(module.num_features, module.eps, module.momentum)
    replacement.weight, replacement.bias = module.weight, module.bias
    replacement.running_mean, replacement.running_var = module.running_mean, module.running_var
    replacement.num_batches_tracked = module.num_batches_tracked
    return replacement.train(module.training)


class _GlobalNormalisation(torch.autograd.Function):
    """Native kernels for what is local; between them, ranks exchange 2C + 1 numbers a part forward and 2C backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        output, mean, variance, count = _normalised(x, weight, bias, eps, parts)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        ctx.set_materialize_grads(False)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, variance, count = ctx.saved_tensors
        grad_x, (grad_bias, grad_weight) = _gradients(gradients[0], x, weight, mean, variance, count, ctx.eps)
        return grad_x, grad_weight, grad_bias, None, None


def _are_images(x: Tensor) -> bool:
    return x.dim() == 4


def _pieces(x: Tensor, parts: int) -> list[Tensor]:
    """The parts of a batch; none where it holds no rows."""
    return list(x.chunk(parts)) if len(x) else []


def _normalised(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output like x; mean and biased variance over all ranks, (parts, C), and of how many values, (parts, 1)."""
    pieces = _pieces(x, parts)
    local = [value for piece in pieces for value in _statistics(piece)]
    mean, variance, count = (_over_images if _are_images(x) else _over_rows)(x, local, parts)
    output, unused = torch.empty_like(x), [mean.new_empty(0) for _ in range(2)]
    for number, (piece, out) in enumerate(zip(pieces, _pieces(output, parts), strict=True)):
        torch.ops.aten.native_batch_norm.out(
            piece, weight, bias, mean[number], variance[number], False, 0.0, eps,
            out=out, save_mean=unused[0], save_invstd=unused[1],
        )  # fmt: skip
    return output, mean, variance, count


def _statistics(piece: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of this rank's values, (C,) each, float32."""
    # Of half precisions CUDA gives float32. A CPU gives the type of the running statistics, without any that of x.
    running = None if _is_on_cuda(piece) else torch.zeros(piece.shape[1], device=piece.device)
    return torch.batch_norm_update_stats(piece, running, running, 0.0)


def _gathered(local: Tensor) -> Tensor:
    """Every rank's, (ranks, …)."""
    every: Tensor = local.new_empty(dist.get_world_size() * len(local), *local.shape[1:])
    dist.all_gather_into_tensor(every, local)
    return every.view(-1, *local.shape)


def _over_images(x: Tensor, local: Sequence[Tensor], parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number over ranks that have as many values each."""
    every = _gathered(torch.cat([*local]).view(parts, 2, -1))
    between, mean = torch.var_mean(every[:, :, 0], dim=0, correction=0)
    values = x.numel() // x.shape[1] // parts * len(every)
    return mean, between + every[:, :, 1].mean(0), mean.new_full((parts, 1), values)


def _over_rows(x: Tensor, local: Sequence[Tensor], parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number over ranks of any number of rows. Those without weigh nothing.

    They send float32 as the others do, whatever their rows would be of: what ranks exchange has one type.
    """
    channels = x.shape[1]
    sent = torch.zeros(parts, 2 * channels + 1, device=x.device)
    if local:
        count = torch.full((parts, 1), x.numel() / channels / parts, device=x.device)
        sent = torch.cat([torch.cat([*local]).view(parts, -1), count], 1)
    means, variances, counts = _gathered(sent).split([channels, channels, 1], dim=2)
    total = counts.sum(0)
    share = counts / total.clamp(min=1)
    mean = (share * means).sum(0)
    apart = means - mean
    return mean, (share * torch.addcmul(variances, apart, apart)).sum(0), total


def _gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Of x; of bias and weight, (2, C), by this rank's rows alone, as DDP averages these.

    dx = w/σ · (g - E[g] - x̂·E[g·x̂]) (Ioffe and Szegedy 2015): sums of this rank, then of all, then dx.
    """
    parts = len(mean)
    layout = torch.channels_last if _are_images(x) and x.is_contiguous(memory_format=torch.channels_last) else None
    gradient = gradient.contiguous(memory_format=layout or torch.contiguous_format)
    kernels = (_CudaKernels if _is_on_cuda(x) else _CpuKernels)(weight, mean, variance, count, eps)
    pieces = zip(_pieces(gradient, parts), _pieces(x, parts), strict=True)
    begun = [kernels.begin(part, *piece) for part, piece in enumerate(pieces)]
    own = mean.new_zeros(parts, 2, x.shape[1])
    if begun:
        own = torch.stack([one for of_part, _ in begun for one in of_part]).view_as(own)
    sums = own.clone()
    dist.all_reduce(sums)
    done = kernels.finish([rest for _, rest in begun], own, sums)
    return (torch.cat(done) if len(done) > 1 else done[0]) if done else torch.zeros_like(x), own.sum(0)


def _is_on_cuda(x: Tensor) -> bool:
    return x.is_cuda


class _CpuKernels:
    """Gradients on a CPU. One pass gives both sums of a part, and dx as if this rank's rows were all that there are.

    A second adds what the others change, which is linear in x, and little in half precision too.
    """

    def __init__(self, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float) -> None:
        self.weight, self.mean, self.count, self.eps = weight, mean, count, eps
        self.inverse_std = (variance + eps).rsqrt()

    def begin(self, part: int, gradient: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Σg and Σg·x̂ of this rank, (C,) each; and what `finish` takes."""
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, self.weight, None, None, self.mean[part], self.inverse_std[part], True, self.eps, [True] * 3
        )
        return (grad_bias, grad_weight), (grad_x, x)

    def finish(self, begun: Sequence[tuple[Tensor, Tensor]], own: Tensor, sums: Tensor) -> list[Tensor]:
        """dx of each part, by the sums of this rank and of all, (parts, 2, C)."""
        if not begun:
            return []
        x = begun[0][1]
        excess = own / (x.numel() // x.shape[1]) - sums / self.count.clamp(min=1).unsqueeze(2)
        scale = self.weight * self.inverse_std
        slope = scale * self.inverse_std * excess[:, 1]
        constant = scale * excess[:, 0] - slope * self.mean
        done = []
        for part, (grad_x, x) in enumerate(begun):
            a, b = (v[part].to(x.dtype).view(1, -1, *(1 for _ in x.shape[2:])) for v in (slope, constant))
            done.append(grad_x.addcmul_(x, a).add_(b))
        return done


class _CudaKernels:
    """The same by the kernels of torch.nn.SyncBatchNorm, which add up in float32 and round once, whatever x is."""

    def __init__(self, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float) -> None:
        self.weight, self.mean, self.count = weight, mean, count
        self.inverse_std = (variance + eps).rsqrt()

    def begin(self, part: int, gradient: Tensor, x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Σg and Σg·x̂ of this rank, (C,) each; and what `finish` takes."""
        _, _, grad_weight, grad_bias = torch.batch_norm_backward_reduce(
            gradient, x, self.mean[part], self.inverse_std[part], self.weight, True, True, True
        )
        return (grad_bias, grad_weight), (gradient, x)

    def finish(self, begun: Sequence[tuple[Tensor, Tensor]], own: Tensor, sums: Tensor) -> list[Tensor]:
        """dx of each part, by the sums of all ranks, (parts, 2, C)."""
        # the kernel takes Σg·(x - μ), and divides by the sum of its counts, which are int32
        apart, count = sums[:, 1] / self.inverse_std, self.count.int()
        return [
            torch.batch_norm_backward_elemt(
                *one, self.mean[part], self.inverse_std[part], self.weight, sums[part, 0], apart[part], count[part]
            )
            for part, one in enumerate(begun)
        ]


# Within torch.compile both ways are operators that it does not look into: their exchanges would break its graph.
@torch.library.custom_op("r2o::global_batch_norm", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _normalised(x, weight, bias, eps, parts)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean = weight.new_empty(parts, x.shape[1], dtype=torch.float32)
    return torch.empty_like(x), mean, torch.empty_like(mean), mean.new_empty(parts, 1)


@torch.library.custom_op("r2o::global_batch_norm_gradients", mutates_args=())
def _opaque_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _gradients(gradient, x, weight, mean, variance, count, eps)


@_opaque_gradients.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), mean.new_empty(2, x.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, eps, _ = inputs
    ctx.save_for_backward(x, weight, *output[1:])
    ctx.eps = eps


def _backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    grad_x, (grad_bias, grad_weight) = _opaque_gradients(gradient, *ctx.saved_tensors, ctx.eps)
    return grad_x, grad_weight, grad_bias, None, None


_opaque.register_autograd(_backward, setup_context=_keep)
