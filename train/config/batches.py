"""How the samples of a set are cut into steps, and what changes by step."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from pipeline.foundation.errors import InputError
from train.config.data import DataSettings
from train.config.pretrain import PretrainSettings
from train.r2o.schedules import scaled_target_ema, target_ema_at


def decoding_workers(requested: int) -> int:
    """Processes that decode: as many as asked for, at most one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(requested, cores)


def batch_bytes(data: DataSettings, local_batch_size: int) -> int:
    """Bytes of a host batch's pixels, or of its JPEGs at a usual 110 kB where the device decodes."""
    return local_batch_size * (sample_numbers(data) if data.decode == "host" else 110_000)


def sample_numbers(data: DataSettings) -> int:
    """Numbers in the whole image and both views of a sample."""
    return 3 * (data.image_size**2 + 2 * data.view_size**2)


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the samples of a set are cut into steps, and what each rank takes."""

    num_samples: int
    global_batch_size: int
    num_ranks: int
    accumulation: int = 1
    epochs: int
    warmup_epochs: float

    @property
    def local_batch_size(self) -> int:
        """Images per rank and forward pass; a step has `accumulation` of them."""
        return self.global_batch_size // (self.num_ranks * self.accumulation)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Steps of the learning rate's warm-up."""
        return round(self.warmup_epochs * self.steps_per_epoch)


def plan_batches(settings: PretrainSettings, *, num_samples: int, num_ranks: int) -> BatchPlan:
    """The batch arithmetic of a run whose settings are `fitted_to` the ranks.

    Raises:
        InputError: fewer samples than one global batch, ranks that do not hold whole clustering groups, or a global
            batch that does not come out.
    """
    batch, group, run = settings.global_batch_size, settings.refine.clustering_group_size, settings.run
    if num_samples < batch:
        raise InputError(
            f"the shards hold {num_samples} samples, less than one global batch of {batch}; "
            "lower pretrain.global_batch_size or make more shards"
        )
    passes = num_ranks * run.accumulation
    if run.local_batch_size is not None and run.local_batch_size * passes != batch:
        raise InputError(_other_batch(settings, num_ranks))
    if batch % (passes * group):
        raise InputError(
            f"{num_ranks} processes{f' × {run.accumulation} passes' if run.accumulation > 1 else ''} cannot share a "
            f"global batch of {batch} in whole clustering groups of {group}; use a number of processes "
            f"{'× passes ' if run.accumulation > 1 else ''}that divides {batch // group}"
        )
    return BatchPlan(
        num_samples=num_samples,
        global_batch_size=batch,
        num_ranks=num_ranks,
        accumulation=run.accumulation,
        epochs=settings.epochs,
        warmup_epochs=settings.optim.warmup_epochs,
    )


def _other_batch(settings: PretrainSettings, num_ranks: int) -> str:
    """That the global batch does not come out, and the ways to make it."""
    batch, local, run = settings.global_batch_size, settings.run.local_batch_size, settings.run
    assert local is not None
    made = local * num_ranks * run.accumulation
    fitting = f"pretrain.run.accumulation={batch // (local * num_ranks)}" if batch % (local * num_ranks) == 0 else None
    ways = [
        *([fitting] if fitting else []),
        f"pretrain.global_batch_size={made}",
        "pretrain.run.on_other_batch=scale, which changes learning rate and target_ema with it by rule",
    ]
    return (
        f"{num_ranks} processes × {local} images × {run.accumulation} passes make a global batch of {made}, but the "
        f"recipe's is {batch}; set {', or '.join(ways)}"
    )


def learning_rate_at(step: int, *, peak_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Learning rate of a 0-based step: linear from 0 to `peak_lr`, then a half cosine to 0 at `total_steps` (A.1)."""
    if step < warmup_steps:
        return peak_lr * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    return peak_lr * 0.5 * (1 + math.cos(math.pi * progress))


def run_learning_rate(settings: PretrainSettings, step: int, plan: BatchPlan) -> float:
    """The learning rate of a 0-based step of a run."""
    lr = learning_rate_at(step, peak_lr=settings.peak_lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps)
    scale = settings.optim.lr_scale_by_clusters
    return lr if scale is None else lr * settings.num_clusters(step // plan.steps_per_epoch) / scale


def run_target_ema(settings: PretrainSettings, step: int, plan: BatchPlan) -> float:
    """τ of a 0-based step of a run."""
    optim = settings.optim
    target_ema = target_ema_at(step, base_target_ema=optim.base_target_ema, total_steps=plan.total_steps)
    return scaled_target_ema(
        target_ema, batch_size=plan.global_batch_size, reference_batch_size=optim.target_ema_batch_size
    )
