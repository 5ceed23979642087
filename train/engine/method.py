"""What R2O does within a step: random numbers, forward pass, update. Another method has a file like this."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from train.config.batches import BatchPlan, run_learning_rate, run_target_ema
from train.config.pretrain import PretrainSettings
from train.engine.build import Training, unwrapped
from train.r2o.ema import update_target
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import Batch, Output

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def forward_pass(training: Training, batch: Batch, *, step: int, pass_number: int, moves_target: bool = True) -> Output:
    """The networks' output for a local batch.

    Args:
        step: 0-based step of the run.
        pass_number: 0-based pass of the step; with the rank it says which clustering groups these are.
        moves_target: not of a pass that is done again (`optim.target_update: before_targets`).
    """
    settings, plan, device = training.settings, training.plan, training.world.device
    groups = _groups(settings, plan)
    first_group = (training.world.rank * plan.accumulation + pass_number) * groups
    uniforms = seeding_uniforms(
        settings.num_clusters(step // plan.steps_per_epoch),
        seed=settings.seed,
        step=step,
        first_group=first_group,
        num_groups=groups,
    )
    moves = moves_target and settings.optim.target_update == "before_targets"
    target_ema = run_target_ema(settings, step, plan) if moves else None
    dtype = AUTOCAST.get(settings.run.precision)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        mask_uniforms = _mask_uniforms(step, first_group, settings, plan, device)
        output: Output = training.model(batch, _sent(uniforms, device), mask_uniforms, target_ema=target_ema)
    return output


def update(training: Training, *, step: int) -> None:
    """LARS, then the target, unless it has moved within the forward pass (`optim.target_update`)."""
    settings, plan, r2o = training.settings, training.plan, unwrapped(training.model)
    for group in training.optimizer.param_groups:
        group["lr"] = run_learning_rate(settings, step, plan)
    training.optimizer.step()
    if settings.optim.target_update == "after_step":
        update_target(r2o.target, r2o.online, target_ema=run_target_ema(settings, step, plan))


def _groups(settings: PretrainSettings, plan: BatchPlan) -> int:
    """Clustering groups of a local batch."""
    return plan.local_batch_size // settings.refine.clustering_group_size


def _mask_uniforms(
    step: int, first_group: int, settings: PretrainSettings, plan: BatchPlan, device: torch.device
) -> Tensor | None:
    """What samples masks for the contrastive losses, (b, 2, n): a function of (seed, step, clustering group)."""
    if settings.objective.loss == "byol":
        return None
    shape = (settings.refine.clustering_group_size, 2, settings.objective.masks_per_view)
    drawn = [
        np.random.default_rng([settings.seed, step, group, 1]).random(shape, dtype=np.float32)
        for group in range(first_group, first_group + _groups(settings, plan))
    ]
    return _sent(torch.from_numpy(np.concatenate(drawn)), device)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """On the device. The host does not wait: from pinned memory a copy is queued like a kernel."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)
