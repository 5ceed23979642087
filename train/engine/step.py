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
from torch import Tensor

from train.config.batches import run_learning_rate, run_target_ema
from train.data.device import LocalBatch
from train.data.shards.reader import Skipped
from train.distributed.collectives import sum_over_ranks, texts_of_all
from train.distributed.replicas import only_local
from train.engine.build import Training
from train.engine.method import forward_pass, update
from train.r2o.model import Output
from train.run.metrics import feature_std

FORWARD = ("image", "view", "projection", "prediction", "loss")  # in the order in which they are computed


class StepFigures(NamedTuple):
    """What one step tells, the same on every rank but for the stds, which are of the local rows.

    loss: L_repr (Eq. 5), in [0, 8], or half of it (`objective.directions: mean`). valid_fraction: of the B × K masks,
    those in both views. clusters_in_use: per image. prediction_std, projection_std: see `feature_std`. grad_norm: L2
    over all parameters, before LARS. skipped: samples that could not be read and were replaced. overflowed: 1 where
    fp16 gradients were too large and nothing was updated. asked_to_stop: ranks that want the run to end after this
    step.
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


class StepResult(NamedTuple):
    """What a step gives: its figures, and the samples of this rank that were skipped for it."""

    figures: StepFigures
    skipped: list[Skipped]


class _Sums(NamedTuple):
    """What ranks add up, float64 scalars. `loss` is divided by `weight`; `asked`: ranks that want the run to end."""

    loss: Tensor
    weight: Tensor
    valid: Tensor
    clusters_in_use: Tensor
    skipped: Tensor
    asked: Tensor


class _Part(NamedTuple):
    """A forward and backward pass; `sums` are over ranks."""

    local_batch: LocalBatch
    output: Output
    sums: _Sums


class _Read(NamedTuple):
    """What is read back from the device, all at once."""

    loss: float
    valid: float
    clusters_in_use: float
    skipped: float
    asked: float
    grad_norm: float
    prediction_std: float
    projection_std: float


def train_step(
    training: Training, local_batches: Iterable[LocalBatch], *, step: int, asks_to_stop: bool = False
) -> StepResult:
    """Forward, backward, LARS, EMA, for one global batch of which this rank holds its part.

    What ranks have to agree on, skipped samples and the wish to stop, goes to all of them with the loss.

    Args:
        local_batches: gives the rank's `plan.accumulation` local batches.
        asks_to_stop: this rank wants the run to end after this step.
    Raises:
        NotFiniteError: loss or gradient is not finite.
    """
    settings, plan, scaler = training.settings, training.plan, training.scaler
    seed_generators(settings.seed, step, training.world.rank)
    training.optimizer.zero_grad(set_to_none=True)
    parts = []
    for number, local_batch in enumerate(islice(local_batches, plan.accumulation)):
        with nullcontext() if number + 1 == plan.accumulation else only_local(training.model):
            parts.append(_pass(training, local_batch, number, step, asks_to_stop=asks_to_stop))
    assert len(parts) == plan.accumulation, f"step {step}: {len(parts)} local batches of {plan.accumulation}"
    sums = _Sums(*torch.stack([torch.stack(part.sums) for part in parts]).sum(0).unbind())
    last = parts[-1].output
    read = _read_back(sums, _gradient_norm(training, sums.weight), last)
    is_finite = math.isfinite(read.loss) and math.isfinite(read.grad_norm)
    overflowed = scaler is not None and math.isfinite(read.loss) and not is_finite and scaler.get_scale() > 1
    if not is_finite and not overflowed:
        culprits = _culprits(training, parts, step)
        raise NotFiniteError(step, loss=read.loss, grad_norm=read.grad_norm, culprits=culprits)
    if not overflowed:
        update(training, step=step)
    if scaler is not None:
        scaler.update()
    figures = StepFigures(
        loss=read.loss,
        lr=run_learning_rate(settings, step, plan),
        target_ema=run_target_ema(settings, step, plan),
        num_clusters=settings.num_clusters(step // plan.steps_per_epoch),
        valid_fraction=read.valid / (plan.global_batch_size * last.valid.shape[1]),
        masks_per_image=read.valid / plan.global_batch_size,
        clusters_in_use=read.clusters_in_use / plan.global_batch_size,
        prediction_std=read.prediction_std,
        projection_std=read.projection_std,
        grad_norm=read.grad_norm,
        skipped=int(read.skipped),
        overflowed=int(overflowed),
        asked_to_stop=int(read.asked),
    )
    return StepResult(figures, [one for part in parts for one in part.local_batch.host.skipped])


def _read_back(sums: _Sums, grad_norm: Tensor, last: Output) -> _Read:
    """All figures in one read, after everything that they wait for has been queued."""
    mean_loss = sums.loss / _divisor(sums.weight)
    stds = [feature_std(last.predictions), feature_std(last.projections)]
    values = [mean_loss, sums.valid, sums.clusters_in_use, sums.skipped, sums.asked, grad_norm, *stds]
    return _Read(*torch.stack([value.double() for value in values]).tolist())


def seed_generators(seed: int, step: int, rank: int) -> None:
    """Make torch's global generators a function of the step, so that dropout too goes on exactly after a resume."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> 1))


def _pass(
    training: Training,
    local_batch: LocalBatch,
    number: int,
    step: int,
    *,
    asks_to_stop: bool = False,
    is_again: bool = False,
) -> _Part:
    """Forward and backward of one local batch.

    DDP averages gradients over ranks, while the loss is a mean over the masks of all ranks and passes. With more than
    one pass what it is divided by is known only after the last: until then, that is the number of images.
    """
    plan, world, scaler = training.plan, training.world, training.scaler
    output = forward_pass(training, local_batch.batch, step=step, pass_number=number, moves_target=not is_again)
    counted = [len(local_batch.host.skipped), int(asks_to_stop and number == 0)]
    local = [output.loss_sum, output.weight_sum, output.valid.sum(), output.clusters_in_use.sum()]
    values = torch.stack([value.detach().double() for value in local])
    counts = [values.new_full((1,), float(count)) for count in counted]  # filled in there: a copy would be waited for
    sums = _Sums(*sum_over_ranks(torch.cat([values, *counts]), world).unbind())
    over = _divisor(sums.weight) if plan.accumulation == 1 else values.new_full((), plan.global_batch_size)
    loss = output.loss_sum * (world.size / over).to(output.loss_sum.dtype)
    (loss if scaler is None else scaler.scale(loss)).backward()
    return _Part(local_batch, output, sums)


def _divisor(weight: Tensor) -> Tensor:
    """The sum of the masks' weights; 1 where there is no mask, so that the loss is 0."""
    return torch.where(weight > 0, weight, 1.0)


def _gradient_norm(training: Training, weight: Tensor) -> Tensor:
    """L2 over all gradients, after they have been made those of the loss itself."""
    plan = training.plan
    if training.scaler is not None:
        training.scaler.unscale_(training.optimizer)
    gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
    if plan.accumulation > 1:
        torch._foreach_mul_(gradients, (plan.global_batch_size / _divisor(weight)).float())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def _culprits(training: Training, parts: Sequence[_Part], step: int) -> list[Culprit]:
    """Where something is not finite first, of all ranks: in a forward pass or else, with that done again, a gradient.

    What is wrong on one rank reaches the others through batch statistics, so only those are named where it is wrong
    earliest: in the input, then in what comes of it.
    """
    found = []
    for number, part in enumerate(parts):
        batch, output = part.local_batch.batch, part.output
        values = (batch.images, batch.views, output.projections, output.predictions, output.loss_sum)
        quantity = _not_finite(dict(zip(FORWARD, values, strict=True)))
        training.optimizer.zero_grad(set_to_none=True)
        with only_local(training.model):  # on every rank: batch norms exchange their statistics
            _pass(training, part.local_batch, number, step, is_again=True)
        gradients = {f"gradient of {name}": p.grad for name, p in training.model.named_parameters()}
        quantity = quantity or _not_finite(gradients)
        if quantity is not None:
            found.append(Culprit(training.world.rank, quantity, part.local_batch.host.sample_id.tolist()))
    texts = texts_of_all(json.dumps(found), training.world)
    every = [Culprit(*one) for text in texts for one in json.loads(text)]
    order = [FORWARD.index(one.quantity) if one.quantity in FORWARD else len(FORWARD) for one in every]
    return [one for one, place in zip(every, order, strict=True) if place == min(order)]


def _not_finite(values: Mapping[str, Tensor | None]) -> str | None:
    """The name of the first that holds NaN or infinity."""
    return next((name for name, value in values.items() if value is not None and not value.isfinite().all()), None)
