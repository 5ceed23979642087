"""R2O's step on one batch, over and over; the bare loop and the floor that it is compared with."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model

from pipeline.artifacts.manifest import Manifest
from tests.benchmarks.turns import DEVICE
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import host_batches
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import build_training, unwrapped
from train.engine.step import train_step


def settings_of(batch: int = 32, num_clusters: int = 4, **sections: dict[str, object]) -> PretrainSettings:
    """The paper's recipe at one batch size and one K."""
    fixed = {"schedule": "constant", "initial_num_clusters": num_clusters, "final_num_clusters": num_clusters}
    return PretrainSettings.model_validate(
        {
            "global_batch_size": batch,
            "data": {"num_workers": 0},
            "curriculum": {**fixed, "hold_epochs": 0},
            **sections,
        }
    )


def sections_of(args: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Backbone and precision that were asked for."""
    return {"run": {"precision": args.precision, "channels_last": True}, "model": {"backbone": args.backbone}}


def make_local_batch(shards: Path, settings: PretrainSettings) -> LocalBatch:
    """The run's first batch, on the device."""
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    host = next(iter(host_batches(reader, settings, range(1), rank=0, num_ranks=1)))
    return LocalBatch(host, to_device(host, settings, DEVICE))


def repeated(local_batch: LocalBatch, times: int) -> LocalBatch:
    """The same images several times over, for batches that a sample of a data set is too small for."""
    tensors = {
        name: value.repeat(times, *[1] * (value.dim() - 1)).contiguous(memory_format=_layout(value))
        for name, value in local_batch.batch._asdict().items()
        if value is not None
    }
    return local_batch._replace(batch=local_batch.batch._replace(**tensors))


def _layout(value: Tensor) -> torch.memory_format:
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class Trainer:
    """One configuration's step on one batch, over and over."""

    def __init__(self, shards: Path, settings: PretrainSettings) -> None:
        self.settings = settings
        self.plan = plan_batches(settings, num_samples=settings.global_batch_size, num_ranks=1)
        world = World(0, 1, DEVICE)
        max_superpixels = Manifest.read(shards).max_superpixels
        self.training = build_training(settings, self.plan, world, max_superpixels=max_superpixels)
        self.model, self.optimizer = unwrapped(self.training.model), self.training.optimizer
        batch, group = settings.global_batch_size, settings.refine.clustering_group_size
        one = settings.model_copy(update={"global_batch_size": group})
        self.local_batch = repeated(make_local_batch(shards, one), batch // group)
        self.masks = 0.0

    def step(self) -> None:
        """One whole step with its update."""
        figures = train_step(self.training, [self.local_batch], step=0).figures
        self.masks = figures.masks_per_image


class Bare:
    """The forwards and backwards of a BYOL step with torchvision's model and nothing else."""

    def __init__(self, trainer: Trainer) -> None:
        name, last = trainer.settings.model.backbone, torch.channels_last
        self.views, self.precision = trainer.local_batch.batch.views, trainer.settings.run.precision
        self.online, self.target = (get_model(name).to(DEVICE, memory_format=last).train() for _ in range(2))
        self.online.fc = self.target.fc = nn.Identity()

    def step(self) -> None:
        """Both views through both networks, and back through one."""
        self.online.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.precision == "bf16"):
            online = [self.online(self.views[:, v]) for v in (0, 1)]
            with torch.no_grad():
                target = [self.target(self.views[:, v]) for v in (0, 1)]
            loss = sum((a.float() - b.float()).square().mean() for a, b in zip(online, reversed(target), strict=True))
        loss.backward()


def floor_of(trainer: Trainer, *, refines: bool) -> float:
    """Floating-point operations of a step: backbones, C4 of the whole image, and the heads' rows; ×3 where learned."""
    backbone, images = trainer.model.online["backbone"], trainer.local_batch.batch.images[:1].float()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        backbone.eval()(images)
    with FlopCounterMode(display=False) as to_c4, torch.no_grad():
        backbone.forward_c4(images)
    backbone.train()
    model = trainer.settings.model
    width, hidden, size = backbone.c5_channels, model.head_hidden_size, model.projection_size
    projector, predictor = 2 * hidden * (width + size), 2 * hidden * 2 * size
    per_image = 2 * 4 * whole.get_total_flops() + (to_c4.get_total_flops() if refines else 0)
    return per_image + trainer.masks * 2 * (4 * projector + 3 * predictor)
