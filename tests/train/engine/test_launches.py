"""How often a step on a GPU launches, exchanges and waits, counted without one.

`python -m tests.train.engine.test_launches` prints the counts for docs/benchmarks.md.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from tests.train.launches import DEVICE, Launches, launches
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.augment import AugmentParams, draw_params
from train.data.device import LocalBatch, to_device
from train.data.loader import HostBatch
from train.distributed import batch_norm
from train.distributed.batch_norm import statistics_by_part, with_global_batch_norm
from train.distributed.world import World
from train.engine.build import build_training, unwrapped
from train.engine.step import train_step
from train.r2o.model import Batch

IMAGES, SIZE = 32, 224
RANKS = 128


def settings_of(num_clusters: int, *, ranks: int = 1, **sections: Any) -> PretrainSettings:
    curriculum = {
        "schedule": "constant",
        "initial_num_clusters": num_clusters,
        "final_num_clusters": num_clusters,
        "hold_epochs": 0,
    }
    return PretrainSettings.model_validate(
        {"global_batch_size": IMAGES * ranks, "curriculum": curriculum, "run": {"channels_last": True}, **sections}
    )


def batch() -> LocalBatch:
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "images": ((IMAGES, 3, SIZE, SIZE), torch.float32),
        "superpixels": ((IMAGES, SIZE, SIZE), torch.int32),
        "views": ((IMAGES, 2, 3, SIZE, SIZE), torch.float32),
        "crop_box": ((IMAGES, 2, 4), torch.float32),
        "flipped": ((IMAGES, 2), torch.bool),
    }
    fields = {name: torch.empty(shape, dtype=dtype, device=DEVICE) for name, (shape, dtype) in shapes.items()}
    host: Any = SimpleNamespace(skipped=(), sample_id=torch.arange(IMAGES))
    return LocalBatch(host, Batch(**fields))


def step_of(settings: PretrainSettings, world: World) -> Launches:
    """The second step, whose momenta are there."""
    plan = plan_batches(settings, num_samples=4 * settings.global_batch_size, num_ranks=world.size)
    training = build_training(settings, plan, world, max_superpixels=100)
    if world.size > 1:
        unwrapped(training.model).by_part = statistics_by_part
        with_global_batch_norm(training.model)
    for step in range(2):
        with launches() as counted:
            train_step(training, [batch()], step=step)
    return counted


# torch 2.15 takes 1,999 and 2,170; 2.11 takes 17 more of the same
@pytest.mark.parametrize(("num_clusters", "most"), [(4, 2020), (128, 2190)])
def test_a_step_waits_twice_mixes_no_devices_and_launches_little(num_clusters: int, most: int) -> None:
    counted = step_of(settings_of(num_clusters), World(0, 1, DEVICE))
    assert counted.waits == ["rows are counted", "a copy to cpu"]
    assert counted.mixed == []
    # Of the networks: three passes over 53 convolutions, one of them without its last 10, and two backward.
    assert counted.kernels["convolution"] == 4 * 53 + 43
    assert counted.kernels["convolution_backward"] == 2 * 53
    assert counted.kernels["native_batch_norm"] == 4 * 53 + 43 + 6
    assert counted.kernels.total() < most
    assert not counted.exchanges


def test_a_step_that_compares_all_rows_waits_for_its_figures_alone() -> None:
    counted = step_of(settings_of(16, objective={"rows": "all"}), World(0, 1, DEVICE))
    assert counted.waits == ["a copy to cpu"]


def test_passes_that_add_up_wait_no_more_than_alone() -> None:
    settings = settings_of(16, ranks=2, run={"accumulation": 2})
    plan = plan_batches(settings, num_samples=4 * settings.global_batch_size, num_ranks=1)
    training = build_training(settings, plan, World(0, 1, DEVICE), max_superpixels=100)
    with launches() as counted:
        train_step(training, [batch(), batch()], step=0)
    assert counted.waits == ["rows are counted", "rows are counted", "a copy to cpu"]


def host_batch(settings: PretrainSettings) -> HostBatch:
    """Black images with augmentations of their own."""
    rng = np.random.default_rng(0)
    drawn = [draw_params(rng, settings.augment) for _ in range(IMAGES)]
    return HostBatch(
        sample_id=torch.arange(IMAGES),
        images=torch.zeros(IMAGES, 3, SIZE, SIZE, dtype=torch.uint8),
        superpixels=torch.zeros(IMAGES, SIZE, SIZE, dtype=torch.uint8),
        views=torch.zeros(IMAGES, 2, 3, SIZE, SIZE, dtype=torch.uint8),
        boxes=torch.zeros(IMAGES, 2, 4, dtype=torch.long),
        crop_box=torch.zeros(IMAGES, 2, 4),
        flipped=torch.zeros(IMAGES, 2, dtype=torch.bool),
        augment=AugmentParams(*(np.stack(values) for values in zip(*drawn, strict=True))),
    )


def test_a_batch_reaches_the_device_without_a_wait() -> None:
    settings = settings_of(16, run={"precision": "bf16", "channels_last": True})
    host = host_batch(settings)
    with launches() as counted:
        made = to_device(host, settings, DEVICE)
    assert (made.views.dtype, made.views.device) == (torch.bfloat16, DEVICE)
    assert counted.waits == []
    assert counted.mixed == []
    assert counted.kernels.total() <= 140


@contextmanager
def first_of_many() -> Iterator[World]:
    """The first of 128 ranks, whose exchanges go nowhere; batch norms take CUDA's kernels."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    try:
        with patch.object(batch_norm, "_is_on_cuda", lambda x: True):
            yield World(0, RANKS, DEVICE)
    finally:
        dist.destroy_process_group()


def test_batch_norms_over_many_ranks_exchange_once_for_both_views_and_wait_for_nothing() -> None:
    with first_of_many() as world:
        counted = step_of(settings_of(128, ranks=RANKS), world)
    assert counted.waits == ["rows are counted", "a copy to cpu"]
    assert counted.mixed == []
    # Forward: C4 of the target (43), then online and target with their projectors, and the predictor.
    assert counted.exchanges["_allgather_base_"] == 43 + 2 * 54 + 1
    assert counted.exchanges["allreduce_"] == 54 + 1 + 1  # backward; then the step's figures
    assert counted.kernels["convolution"] == 2 * 53 + 43  # both views pass together


def main() -> None:
    for clusters in (4, 16, 128):
        counted = step_of(settings_of(clusters), World(0, 1, DEVICE))
        print(f"K = {clusters}: {counted.kernels.total()} kernels, waits: {', '.join(counted.waits)}")
    settings = settings_of(16)
    with launches() as counted:
        to_device(host_batch(settings), settings, DEVICE)
    print(f"a batch on its way to the step: {counted.kernels.total()} kernels, {len(counted.waits)} waits")
    with first_of_many() as world:
        counted = step_of(settings_of(128, ranks=RANKS), world)
    print(
        f"K = 128 on one of {RANKS} ranks: {counted.kernels.total()} kernels, {counted.exchanges.total()} exchanges, "
        f"{len(counted.waits)} waits"
    )


if __name__ == "__main__":
    main()
