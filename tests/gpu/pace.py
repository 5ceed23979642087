"""How fast each method trains, and how many epochs of each take the same time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from pipeline.artifacts.manifest import Manifest
from tests.gpu.device import CUDA, DEVICE, wait
from tests.gpu.places import DRY
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import device_batches
from train.data.loader import host_batches
from train.data.shards.open import max_superpixels, open_shards
from train.distributed.world import World
from train.engine.build import build_training
from train.engine.step import train_step

WARM, FEWEST = (0, 1) if DRY else (8, 10)  # steps: not timed, and timed at least
SECONDS = 2.5  # that are timed


def images_a_second(settings: PretrainSettings, where: Path) -> float:
    """Of a run's own steps with its own loader, in the middle of its schedules."""
    manifest = Manifest.read(where)
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=1)
    reader = open_shards(str(where), manifest, settings.data)
    most = max_superpixels(manifest, settings)
    training = build_training(settings, plan, World(0, 1, DEVICE), max_superpixels=most)
    steps = range(plan.total_steps // 2, plan.total_steps)
    hosts = host_batches(reader, settings, steps, rank=0, num_ranks=1, pin_memory=CUDA)
    began, timed = time.monotonic(), 0
    with closing(device_batches(hosts, settings, DEVICE)) as batches:
        for number, (step, batch) in enumerate(zip(steps, batches, strict=True)):
            if number == WARM:
                wait()
                began = time.monotonic()
            train_step(training, [batch], step=step)
            timed = number + 1 - WARM
            if timed >= FEWEST and (DRY or time.monotonic() - began > SECONDS):
                break
    wait()
    return timed * settings.global_batch_size / (time.monotonic() - began)


def images_of_an_epoch(settings: PretrainSettings, where: Path) -> int:
    """In whole batches."""
    plan = plan_batches(settings, num_samples=Manifest.read(where).stored, num_ranks=1)
    return plan.steps_per_epoch * plan.global_batch_size


def epochs_of_equal_seconds(rates: Mapping[str, float], *, images: int, seconds: float) -> dict[str, int]:
    """Whole epochs of each method, of about `seconds` or a little less, that take as nearly the same time as can be.

    Args:
        rates: images a second by method.
        images: of an epoch.
    """
    each = np.array(list(rates.values()))
    candidates = [np.maximum(1, np.round(share * seconds * each / images)) for share in np.linspace(0.85, 1.0, 31)]

    def unequal(epochs: np.ndarray) -> float:
        taken = epochs / each
        return float(taken.max() / taken.min())

    best = min(reversed(candidates), key=unequal)  # of equally good ones the longest
    return dict(zip(rates, map(int, best), strict=True))
