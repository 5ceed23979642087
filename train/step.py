"""One training step: host batch in, updated networks and figures out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pipeline.artifacts.errors import InputError
from train.config import BatchPlan, PretrainSettings
from train.data.device import Arrived
from train.distributed import World, sum_over_ranks
from train.ema import update_target
from train.metrics import feature_std
from train.models.backbone import build_backbone
from train.models.heads import Head
from train.optim import LARS
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O, Objective
from train.r2o.refine import Refinement

NOT_ADAPTED = ("class_token", "pos_embedding")


class StepFigures(NamedTuple):
    """What one step tells, the same on every rank but for the stds, which are of the local rows.

    loss: L_repr (Eq. 5), in [0, 8]. valid_fraction: of the B × K masks, those in both views. clusters_in_use: per
    image. prediction_std, projection_std: see `feature_std`. grad_norm: L2 over all parameters, before LARS. skipped:
    samples that could not be read and were replaced.
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


def build_model(settings: PretrainSettings, *, max_superpixels: int) -> R2O:
    """The networks of a run, with random weights that depend on `settings.seed` alone."""
    model = settings.model
    backbone = build_backbone(model.backbone, seed=settings.seed, image_size=settings.data.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed + 1)
        hidden, size = model.head_hidden_size, model.projection_size
        bias, contrast = model.head_output_bias, settings.objective.loss == "nt_xent"
        projector = Head(backbone.c5_channels, hidden_size=hidden, out_size=size, output_bias=bias)
        predictor = None if contrast else Head(size, hidden_size=hidden, out_size=size, output_bias=bias)
    refine, objective = settings.refine, settings.objective
    return R2O(
        backbone,
        projector,
        predictor,
        refinement=Refinement(
            max_superpixels=max_superpixels,
            group_size=refine.clustering_group_size,
            clustering=refine.clustering,
            regions=refine.regions,
            grid=refine.grid,
            iterations=refine.kmeans_iterations,
            normalize=refine.normalize_features,
            assign=refine.assign,
        ),
        objective=Objective(
            loss=objective.loss,
            view_masks=objective.view_masks,
            rows=objective.rows,
            min_pool_area=objective.min_pool_area,
            concatenate=model.concatenate_views,
            aligned=objective.roi_aligned,
            masks_per_view=objective.masks_per_view,
            temperature=objective.temperature,
        ),
    )


def build_optimizer(model: R2O, settings: PretrainSettings) -> LARS:
    """LARS over what is learned; tokens and position embeddings of a ViT are neither adapted nor decayed."""
    optim = settings.optim
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in learned if name.endswith(NOT_ADAPTED)]
    groups: list[dict[str, Any]] = [{"params": [p for name, p in learned if not name.endswith(NOT_ADAPTED)]}]
    if plain:
        groups.append({"params": plain, "adapt": False})
    return LARS(
        groups,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        trust_coefficient=optim.trust_coefficient,
        form=optim.lars,
    )


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    arrived: Arrived,
    *,
    step: int,
    settings: PretrainSettings,
    plan: BatchPlan,
    world: World,
) -> StepFigures:
    """Forward, backward, LARS, EMA, for one global batch of which this rank holds its part.

    The count of skipped samples goes to every rank with the loss, so that all of them stop at the same step.

    Raises:
        InputError: loss or gradient is not finite; on every rank, before anything is updated.
    """
    num_clusters = settings.num_clusters(step // plan.steps_per_epoch)
    uniforms = _uniforms(num_clusters, step, settings, plan, world)
    host, batch = arrived
    with torch.autocast(world.device.type, torch.bfloat16, enabled=settings.run.precision == "bf16"):
        output = model(batch, uniforms.to(world.device), _mask_uniforms(step, settings, plan, world))
    skipped = torch.tensor(len(host.skipped), device=world.device)
    local = [output.loss_sum, output.num_masks, output.valid.sum(), output.clusters_in_use.sum(), skipped]
    totals = sum_over_ranks(torch.stack([value.detach().double() for value in local]), world)
    num_masks = totals[1].clamp(min=1)
    optimizer.zero_grad(set_to_none=True)
    # DDP averages gradients over ranks, while the loss is a mean over the masks of all ranks.
    (output.loss_sum * (world.size / num_masks).to(output.loss_sum.dtype)).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    stds = [feature_std(output.predictions), feature_std(output.projections)]
    # all figures in one read, after everything that they wait for has been queued
    told = torch.cat([totals[:1] / num_masks, totals[2:], torch.stack([norm, *stds]).double()]).tolist()
    loss, num_valid, in_use, num_skipped, grad_norm, prediction_std, projection_std = told
    if not np.isfinite([loss, grad_norm]).all():
        raise InputError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}, nothing was updated; lower pretrain.optim.base_lr "
            f"or look at samples {host.sample_id.tolist()} (rank {world.rank})"
        )
    lr, target_ema = _update(model, optimizer, step, settings, plan)
    return StepFigures(
        loss=loss,
        lr=lr,
        target_ema=target_ema,
        num_clusters=num_clusters,
        valid_fraction=num_valid / (plan.global_batch_size * output.valid.shape[1]),
        masks_per_image=num_valid / plan.global_batch_size,
        clusters_in_use=in_use / plan.global_batch_size,
        prediction_std=prediction_std,
        projection_std=projection_std,
        grad_norm=grad_norm,
        skipped=int(num_skipped),
    )


def _mask_uniforms(step: int, settings: PretrainSettings, plan: BatchPlan, world: World) -> Tensor | None:
    """What samples masks for the contrastive losses, (b, 2, n): a function of (seed, step, clustering group)."""
    if settings.objective.loss == "byol":
        return None
    size, groups = settings.refine.clustering_group_size, plan.local_batch_size // settings.refine.clustering_group_size
    shape = (size, 2, settings.objective.masks_per_view)
    drawn = [
        np.random.default_rng([settings.seed, step, group, 1]).random(shape, dtype=np.float32)
        for group in range(world.rank * groups, (world.rank + 1) * groups)
    ]
    return torch.from_numpy(np.concatenate(drawn)).to(world.device)


def _uniforms(num_clusters: int, step: int, settings: PretrainSettings, plan: BatchPlan, world: World) -> Tensor:
    """The seeds of this rank's clustering groups."""
    groups = plan.local_batch_size // settings.refine.clustering_group_size
    first_group = world.rank * groups
    return seeding_uniforms(num_clusters, seed=settings.seed, step=step, first_group=first_group, num_groups=groups)


def _update(
    model: nn.Module, optimizer: Optimizer, step: int, settings: PretrainSettings, plan: BatchPlan
) -> tuple[float, float]:
    """LARS, then the target; returns the learning rate and τ that were used."""
    r2o = unwrapped(model)
    lr, target_ema = settings.learning_rate(step, plan), settings.target_ema(step, plan)
    for group in optimizer.param_groups:
        group["lr"] = lr
    if settings.optim.target_update == "before_step":
        update_target(r2o.target, r2o.online, target_ema=target_ema)
    optimizer.step()
    if settings.optim.target_update == "after_step":
        update_target(r2o.target, r2o.online, target_ema=target_ema)
    return lr, target_ema


def unwrapped(model: nn.Module) -> R2O:
    """The R2O module inside DDP, or itself."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, R2O)
    return inner
