"""One training step: host batch in, updated networks and figures out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from train.config.batches import BatchPlan, run_learning_rate, run_target_ema
from train.config.pretrain import PretrainSettings
from train.data.device import Arrived
from train.distributed.collectives import sum_over_ranks, texts_of_all
from train.distributed.replicas import only_local
from train.engine.build import Training, unwrapped
from train.r2o.ema import update_target
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import Output
from train.run.metrics import feature_std

FORWARD = ("image", "view", "projection", "prediction", "loss")  # in the order in which they are computed
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepFigures(NamedTuple):
    """What one step tells, the same on every rank but for the stds, which are of the local rows.

    loss: L_repr (Eq. 5), in [0, 8]. valid_fraction: of the B × K masks, those in both views. clusters_in_use: per
    image. prediction_std, projection_std: see `feature_std`. grad_norm: L2 over all parameters, before LARS. skipped:
    samples that could not be read and were replaced. overflowed: 1 where fp16 gradients were too large and nothing was
    updated. asked_to_stop: ranks that want the run to end after this step.
    """

    loss: float
    lr: float
    target_ema: float
    num_clusters: int
    valid_fraction: float
    masks_per_image: float
    clusters_in_use: float
    prediction_std: float
    projection_std: float
    grad_norm: float
    skipped: int
    overflowed: int
    asked_to_stop: int


class NotFiniteError(Exception):
    """A step's loss or gradient is not finite; raised on every rank, with the same content, before any update.

    Attributes:
        culprits: per rank where something is not finite: what, and the ids of the samples that it came from.
    """

    def __init__(self, step: int, *, loss: float, grad_norm: float, culprits: Sequence[Culprit]) -> None:
        super().__init__(f"step {step}: loss {loss}, gradient norm {grad_norm}")
        self.step, self.loss, self.grad_norm, self.culprits = step, loss, grad_norm, tuple(culprits)


class Culprit(NamedTuple):
    """Where something was not finite first."""

    rank: int
    quantity: str
    sample_ids: list[int]


class _Part(NamedTuple):
    """A forward and backward pass. `sums`, over ranks: loss, masks, valid, clusters in use, skipped, asked to stop."""

    arrived: Arrived
    output: Output
    sums: Tensor


def train_step(
    training: Training, arriving: Iterable[Arrived], *, step: int, asks_to_stop: bool = False
) -> StepFigures:
    """Forward, backward, LARS, EMA, for one global batch of which this rank holds its part.

    What ranks have to agree on, skipped samples and the wish to stop, goes to all of them with the loss.

    Args:
        arriving: gives the rank's `plan.accumulation` local batches.
        asks_to_stop: this rank wants the run to end after this step.
    Raises:
        NotFiniteError: loss or gradient is not finite.
    """
    model, optimizer, scaler = training.model, training.optimizer, training.scaler
    settings, plan = training.settings, training.plan
    seed_generators(settings.seed, step, training.world.rank)
    optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, arrived in enumerate(islice(arriving, plan.accumulation)):
        with nullcontext() if number + 1 == plan.accumulation else only_local(model):
            parts.append(_pass(training, arrived, number, step, asks_to_stop=asks_to_stop))
    assert len(parts) == plan.accumulation, f"step {step}: {len(parts)} local batches of {plan.accumulation}"
    sums = torch.stack([part.sums for part in parts]).sum(0)
    norm = _gradient_norm(training, sums[1])
    last = parts[-1].output
    # all figures in one read, after everything that they wait for has been queued
    stds = [feature_std(last.predictions), feature_std(last.projections)]
    told = torch.cat([sums[:1] / sums[1].clamp(min=1), sums[2:], torch.stack([norm, *stds]).double()]).tolist()
    loss, num_valid, in_use, num_skipped, asked, grad_norm, prediction_std, projection_std = told
    overflowed = scaler is not None and math.isfinite(loss) and not math.isfinite(grad_norm) and scaler.get_scale() > 1
    if not (math.isfinite(loss) and math.isfinite(grad_norm)) and not overflowed:
        culprits = _culprits(training, parts, step)
        raise NotFiniteError(step, loss=loss, grad_norm=grad_norm, culprits=culprits)
    lr, target_ema = run_learning_rate(settings, step, plan), run_target_ema(settings, step, plan)
    if not overflowed:
        _update(
            model, optimizer, lr=lr, target_ema=target_ema, target_first=settings.optim.target_update == "before_step"
        )
    if scaler is not None:
        scaler.update()
    return StepFigures(
        loss=loss,
        lr=lr,
        target_ema=target_ema,
        num_clusters=settings.num_clusters(step // plan.steps_per_epoch),
        valid_fraction=num_valid / (plan.global_batch_size * last.valid.shape[1]),
        masks_per_image=num_valid / plan.global_batch_size,
        clusters_in_use=in_use / plan.global_batch_size,
        prediction_std=prediction_std,
        projection_std=projection_std,
        grad_norm=grad_norm,
        skipped=int(num_skipped),
        overflowed=int(overflowed),
        asked_to_stop=int(asked),
    )


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Make torch's global generators a function of the step, so that dropout too goes on exactly after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _pass(training: Training, arrived: Arrived, number: int, step: int, *, asks_to_stop: bool = False) -> _Part:
    """Forward and backward of one local batch.

    DDP averages gradients over ranks, while the loss is a mean over the masks of all ranks and passes. With more than
    one pass that count is known only after the last: until then, losses are divided by the number of images.
    """
    settings, plan, world, scaler = training.settings, training.plan, training.world, training.scaler
    first_group = (world.rank * plan.accumulation + number) * _groups(settings, plan)
    num_clusters = settings.num_clusters(step // plan.steps_per_epoch)
    drawn = seeding_uniforms(
        num_clusters, seed=settings.seed, step=step, first_group=first_group, num_groups=_groups(settings, plan)
    )
    dtype = AUTOCAST.get(settings.run.precision)
    with torch.autocast(world.device.type, dtype, enabled=dtype is not None):
        mask_uniforms = _mask_uniforms(step, first_group, settings, plan, world.device)
        output = training.model(arrived.batch, drawn.to(world.device), mask_uniforms)
    counted = [len(arrived.host.skipped), int(asks_to_stop and number == 0)]
    local = [output.loss_sum, output.num_masks, output.valid.sum(), output.clusters_in_use.sum()]
    sums = torch.stack([value.detach().double() for value in local])
    sums = sum_over_ranks(torch.cat([sums, torch.tensor(counted, dtype=sums.dtype).to(sums.device)]), world)
    over = sums[1].clamp(min=1) if plan.accumulation == 1 else sums.new_tensor(plan.global_batch_size)
    loss = output.loss_sum * (world.size / over).to(output.loss_sum.dtype)
    (loss if scaler is None else scaler.scale(loss)).backward()
    return _Part(arrived, output, sums)


def _gradient_norm(training: Training, num_masks: Tensor) -> Tensor:
    """L2 over all gradients, after they have been made those of the loss itself."""
    plan = training.plan
    if training.scaler is not None:
        training.scaler.unscale_(training.optimizer)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    if plan.accumulation > 1:
        torch._foreach_mul_(gradients, (plan.global_batch_size / num_masks.clamp(min=1)).float())
    return torch.nn.utils.get_total_norm(gradients)


def _culprits(training: Training, parts: Sequence[_Part], step: int) -> list[Culprit]:
    """Where something is not finite first, of all ranks: in a forward pass or else, with that done again, a gradient.

    What is wrong on one rank reaches the others through batch statistics, so only those are named where it is wrong
    earliest: in the input, then in what comes of it.
    """
    found = []
    for number, part in enumerate(parts):
        batch, output = part.arrived.batch, part.output
        values = (batch.images, batch.views, output.projections, output.predictions, output.loss_sum)
        quantity = _not_finite(dict(zip(FORWARD, values, strict=True)))
        training.optimizer.zero_grad(set_to_none=True)
        with only_local(training.model):  # on every rank: batch norms exchange their statistics
            _pass(training, part.arrived, number, step)
        gradients = {f"gradient of {name}": p.grad for name, p in training.model.named_parameters()}
        quantity = quantity or _not_finite(gradients)
        if quantity is not None:
            found.append(Culprit(training.world.rank, quantity, part.arrived.host.sample_id.tolist()))
    texts = texts_of_all(json.dumps(found), training.world)
    every = [Culprit(*one) for text in texts for one in json.loads(text)]
    order = [FORWARD.index(one.quantity) if one.quantity in FORWARD else len(FORWARD) for one in every]
    return [one for one, place in zip(every, order, strict=True) if place == min(order)]


def _not_finite(values: Mapping[str, Tensor | None]) -> str | None:
    """The name of the first that holds NaN or infinity."""
    return next((name for name, value in values.items() if value is not None and not value.isfinite().all()), None)


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
    return torch.from_numpy(np.concatenate(drawn)).to(device)


def _update(model: nn.Module, optimizer: Optimizer, *, lr: float, target_ema: float, target_first: bool) -> None:
    """LARS, then the target; or the other way round."""
    r2o = unwrapped(model)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if target_first:
        update_target(r2o.target, r2o.online, target_ema=target_ema)
    optimizer.step()
    if not target_first:
        update_target(r2o.target, r2o.online, target_ema=target_ema)
