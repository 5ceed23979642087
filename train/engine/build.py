"""From settings to what a step works on: networks, optimiser, loss scaler."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from train.config.batches import BatchPlan
from train.config.pretrain import ObjectiveSettings, PretrainSettings, RefineSettings
from train.distributed.batch_norm import statistics_by_part
from train.distributed.collectives import gather_rows
from train.distributed.replicas import distribute
from train.distributed.world import World
from train.engine.lars import LARS
from train.models.backbone import build_backbone
from train.models.byol_init import draw_as_byol
from train.models.heads import Head
from train.r2o.loss import Everywhere
from train.r2o.model import R2O, Objective
from train.r2o.refine import Refinement

NOT_ADAPTED = ("class_token", "pos_embedding")
ALWAYS_ADAPTED = "online.backbone.bn1.weight"  # by `lars: release`: its exclusion by name misses this batch norm


@dataclass(frozen=True)
class Training:
    """What a step works on. `model` is an R2O, in DistributedDataParallel where there are several ranks."""

    model: nn.Module
    optimizer: LARS
    settings: PretrainSettings
    plan: BatchPlan
    world: World
    scaler: GradScaler | None = None


def build_training(
    settings: PretrainSettings,
    plan: BatchPlan,
    world: World,
    *,
    max_superpixels: int,
    init: Mapping[str, Tensor] | None = None,
) -> Training:
    """A run at its beginning, on this rank alone; make it `distributed` once its state is the ranks' common one."""
    assert settings.run.precision != "auto", "settle_precision comes first"
    _set_tf32(settings.run.precision == "tf32")
    torch.backends.cudnn.benchmark = settings.run.cudnn_benchmark
    r2o = build_model(settings, max_superpixels=max_superpixels, init=init).to(world.device).train()
    if settings.run.channels_last:
        r2o = r2o.to(memory_format=torch.channels_last)
    r2o.gather = lambda values: Everywhere(*gather_rows(values, world))
    scaler = GradScaler(world.device.type) if settings.run.precision == "fp16" else None
    return Training(r2o, build_optimizer(r2o, settings), settings, plan, world, scaler)


def distributed(training: Training) -> Training:
    """The same over all ranks of its world, where it is not yet; unchanged in a world of one."""
    if training.world.size == 1:
        return training
    unwrapped(training.model).by_part = statistics_by_part
    return replace(training, model=distribute(training.model, training.world))


def compile_backbones(model: R2O) -> None:
    """torch.compile both backbones in place, at the first step: for the precision that trains. Names stay."""
    for network in (model.online, model.target):
        backbone = network["backbone"]
        backbone.compile()
        backbone.forward_c4 = torch.compile(backbone.forward_c4)  # type: ignore[arg-type, assignment]


def uncompiled() -> AbstractContextManager[object]:
    """Within it, what is compiled runs as it was before: other sizes or precisions would each be compiled anew."""
    eager: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return eager


def _set_tf32(allowed: bool) -> None:
    """Round float32 products on CUDA devices to TF32, or do not."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def build_model(settings: PretrainSettings, *, max_superpixels: int, init: Mapping[str, Tensor] | None = None) -> R2O:
    """The networks of a run, with random weights that depend on `settings.seed` alone.

    Args:
        init: weights of the backbone, online and target, in place of random ones; some of them or all.
    """
    model = settings.model
    backbone = build_backbone(model.backbone, seed=settings.seed, image_size=settings.data.image_size)
    with torch.random.fork_rng(devices=[]):
        if model.init == "byol":
            torch.manual_seed(settings.seed)
            draw_as_byol(backbone)
        torch.manual_seed(settings.seed + 1)
        hidden, size = model.head_hidden_size, model.projection_size
        bias, contrast = model.head_output_bias, settings.objective.loss == "nt_xent"
        projector = Head(backbone.c5_channels, hidden_size=hidden, out_size=size, output_bias=bias)
        predictor = None if contrast else Head(size, hidden_size=hidden, out_size=size, output_bias=bias)
        if model.init == "byol":
            draw_as_byol(nn.ModuleList([projector, *filter(None, [predictor])]))
    if init is not None:
        backbone.load_state_dict({**backbone.state_dict(), **init})
    return R2O(
        backbone,
        projector,
        predictor,
        refinement=refinement_of(settings.refine, max_superpixels=max_superpixels),
        objective=objective_of(settings.objective, concatenate_views=model.concatenate_views),
    )


def refinement_of(refine: RefineSettings, *, max_superpixels: int) -> Refinement:
    """The settings of refinement as the method takes them; every field has the name of its setting."""
    return Refinement(max_superpixels=max_superpixels, **dict(refine))


def objective_of(objective: ObjectiveSettings, *, concatenate_views: bool) -> Objective:
    """The settings of the objective as the method takes them; every field has the name of its setting."""
    return Objective(concatenate_views=concatenate_views, **dict(objective))


def build_optimizer(model: R2O, settings: PretrainSettings) -> LARS:
    """LARS over what is learned; tokens and position embeddings of a ViT are neither adapted nor decayed.

    The release's form adapts and decays the gain of the stem's batch norm, too.
    """
    optim = settings.optim
    learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = {name for name, _ in learned if name.endswith(NOT_ADAPTED)}
    always = {name for name, _ in learned if name == ALWAYS_ADAPTED and optim.lars == "release"}
    groups: list[dict[str, Any]] = [{"params": [p for name, p in learned if name not in plain | always]}]
    for names, adapt in ((plain, False), (always, "always")):
        if names:
            groups.append({"params": [p for name, p in learned if name in names], "adapt": adapt})
    return LARS(
        groups,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        trust_coefficient=optim.trust_coefficient,
        form=optim.lars,
    )


def unwrapped(model: nn.Module) -> R2O:
    """The R2O module inside DDP, or itself."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    assert isinstance(inner, R2O)
    return inner
