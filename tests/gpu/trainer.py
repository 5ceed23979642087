"""A training step on one batch, over and over, in any configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artifacts.manifest import Manifest
from pipeline.estimates.cost import device_memory, image_flops
from tests.gpu.device import CUDA, DEVICE
from tests.gpu.places import DRY, shards
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import HostBatch, host_batches
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import build_training, unwrapped
from train.engine.step import StepFigures, train_step
from train.r2o.model import Batch

Sections = dict[str, dict[str, Any]]
BYOL: Sections = {"refine": {"clustering": "none", "regions": "image"}}
SMALL_MODEL = {"backbone": "resnet18", "head_hidden_size": 64, "projection_size": 32}
SMALL: Sections = {
    "data": {"num_workers": 0, "image_size": 64, "view_size": 64},
    "augment": {"blur_kernel_size": 5},
    "model": SMALL_MODEL,
    "refine": {"clustering_group_size": 8},
}


def settings_of(batch: int, k: int = 128, **sections: Any) -> PretrainSettings:
    """The paper's recipe at one batch size and one K, in bf16 and channels last; a small one in a dry day."""
    curriculum = {"schedule": "constant", "initial_num_clusters": k, "final_num_clusters": k, "hold_epochs": 0}
    given: dict[str, Any] = {
        "global_batch_size": batch,
        "run": {"precision": "bf16", "channels_last": True},
        "curriculum": curriculum,
    }
    for part in (SMALL if DRY else {"data": {"num_workers": 0}}, sections):
        for name, value in part.items():
            given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    return PretrainSettings.model_validate(given)


def hosts_of(settings: PretrainSettings, steps: int, *, pin: bool = False) -> Iterator[HostBatch]:
    """The first batches of a run, on the host."""
    folder: Path = shards()
    reader = open_shards(str(folder), Manifest.read(folder), settings.data)
    return host_batches(reader, settings, range(steps), rank=0, num_ranks=1, pin_memory=pin and CUDA)


def host_batch(settings: PretrainSettings, *, pin: bool = False) -> HostBatch:
    """The first batch of a run, on the host."""
    return next(iter(hosts_of(settings, 1, pin=pin)))


class Trainer:
    """One configuration's step on one batch, over and over."""

    def __init__(
        self, settings: PretrainSettings, world: World | None = None, device: torch.device | None = None
    ) -> None:
        world = world or World(0, 1, device or DEVICE)
        self.settings, group = settings, settings.refine.clustering_group_size
        self.plan = plan_batches(settings, num_samples=4 * settings.global_batch_size, num_ranks=world.size)
        max_superpixels = Manifest.read(shards()).max_superpixels
        self.training = build_training(settings, self.plan, world, max_superpixels=max_superpixels)
        self.model = unwrapped(self.training.model)
        one = settings.model_copy(update={"global_batch_size": group})
        host = host_batch(one)
        batch = repeated(to_device(host, one, world.device), self.plan.local_batch_size // group, settings)
        self.local_batch = LocalBatch(host, batch)
        self.number = 0
        self.figures: StepFigures | None = None

    def step(self) -> StepFigures:
        """One more step, on the same batch."""
        local_batches = [self.local_batch] * self.plan.accumulation
        figures = train_step(self.training, local_batches, step=self.number).figures
        self.figures, self.number = figures, self.number + 1
        return figures

    def image_flops(self) -> float:
        """Operations of an image in a step, two a multiply-add."""
        masks = self.figures.masks_per_image if self.figures else 1.0
        return image_flops(self.settings, num_clusters=self.settings.num_clusters(0), masks=masks)


def estimated_bytes(settings: PretrainSettings) -> float:
    """What a dry run says that a step on one device takes."""
    plan = plan_batches(settings, num_samples=settings.global_batch_size, num_ranks=1)
    return sum(device_memory(settings, plan).values())


def fits(settings: PretrainSettings) -> bool:
    """Whether a step should fit into this device by that estimate, and some more."""
    return not CUDA or 1.25 * estimated_bytes(settings) < torch.cuda.get_device_properties(DEVICE).total_memory


def repeated(batch: Batch, times: int, settings: PretrainSettings) -> Batch:
    """The same images several times over, laid out as the run wants them."""
    layout = torch.channels_last if settings.run.channels_last else torch.contiguous_format

    def pixels(value: Tensor) -> Tensor:
        return torch.cat([value] * times).contiguous(memory_format=layout)

    rest = {
        name: torch.cat([value] * times)
        for name, value in batch._asdict().items()
        if name not in ("images", "views") and value is not None
    }
    views = pixels(batch.views.flatten(0, 1)).unflatten(0, (-1, 2))
    return batch._replace(images=pixels(batch.images), views=views, **rest)
