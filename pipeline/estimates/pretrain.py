"""What a pretraining run will be, known before it starts and without torch: its checks and its table."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts.manifest import Manifest
from pipeline.estimates.cost import cost_rows
from pipeline.foundation.errors import InputError
from train.config.batches import BatchPlan, plan_batches, run_learning_rate, run_target_ema
from train.config.pretrain import LR_BATCH_SIZE, PretrainSettings


def check_pretrain(settings: PretrainSettings, *, shards: Path | str, run: Path, nproc: int) -> BatchPlan:
    """The plan of a run on finished shards.

    Raises:
        InputError: the shards are none, lack too many images, hold too little for one step, cannot feed `nproc`
            processes, or RUN is a file.
    """
    manifest = Manifest.read(shards)
    if not settings.data.accept_over_limit:
        manifest.require_within_limit(shards, unless="pretrain.data.accept_over_limit=true")
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; RUN must be a folder, new or of the same run")
    return plan_batches(settings.fitted_to(nproc), num_samples=manifest.stored, num_ranks=nproc)


def describe(settings: PretrainSettings, plan: BatchPlan, *, run: Path | None = None) -> str:
    """The batch arithmetic of a run, what it costs, and its learning rate, τ and K by epoch, as text.

    Args:
        run: see `cost_rows`.
    """
    group = settings.refine.clustering_group_size
    left_over = plan.num_samples - plan.steps_per_epoch * plan.global_batch_size
    rows = {
        "samples": f"{plan.num_samples:,}",
        "global batch": f"{plan.global_batch_size:,} images = {plan.num_ranks} processes × {plan.local_batch_size}"
        + (f" × {plan.accumulation} passes, each with batch statistics of its own" if plan.accumulation > 1 else ""),
        "clustering": f"{plan.global_batch_size // group} groups of {group} images, "
        f"{plan.local_batch_size // group} on each process{' and pass' if plan.accumulation > 1 else ''}",
        "steps": f"{plan.steps_per_epoch:,} an epoch × {plan.epochs} epochs = {plan.total_steps:,} in all",
        "left over": f"{left_over:,} samples of each epoch, less than a batch",
        "learning rate": f"peak {settings.peak_lr:g} = {settings.optim.base_lr:g} × {plan.global_batch_size} / "
        f"{LR_BATCH_SIZE}, after {plan.warmup_steps:,} steps ({plan.warmup_epochs:g} epochs)",
        **cost_rows(settings, plan, run),
    }
    head = [f"{name:<15}{value}" for name, value in rows.items()]
    table = [_row(settings, plan, epoch) for epoch in _shown_epochs(settings)]
    return "\n".join([*head, "", f"{'epoch':>7}{'step':>9}{'lr':>10}{'τ':>9}{'K':>6}", *table])


def _shown_epochs(settings: PretrainSettings) -> list[int]:
    """Start, end of warm-up, end of the hold, thirds of the run, and its end."""
    total = settings.epochs
    turning = {0, round(settings.optim.warmup_epochs), round(settings.curriculum.hold_epochs)}
    return sorted(epoch for epoch in turning | {total // 3, 2 * total // 3, total} if epoch <= total)


def _row(settings: PretrainSettings, plan: BatchPlan, epoch: int) -> str:
    """lr and τ at the first step of an epoch, K in it; the last row is the end of the run."""
    step = epoch * plan.steps_per_epoch
    lr, tau = run_learning_rate(settings, step, plan), run_target_ema(settings, step, plan)
    return f"{epoch:>7}{step:>9}{lr:>10.4g}{tau:>9.5f}{settings.num_clusters(epoch):>6}"
