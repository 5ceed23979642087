"""One whole step in float32 against the same step written out in float64 with loops: refinement to EMA."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.train.engine.test_lars import reference_step
from tests.train.r2o.test_model import plain_reference
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch
from train.data.loader import HostBatch
from train.distributed.world import World
from train.engine.build import build_training, unwrapped
from train.engine.step import train_step
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.model import R2O, Batch
from train.r2o.refine import pool_regions

pytestmark = pytest.mark.usefixtures("shallow")

IMAGES, GROUP, CELLS = 8, 4, 4  # C4 is 4 × 4 of 64 px
CLOSE = 1e-2  # of a tensor's gradient: a ReLU at 0 that float32 rounds to the other side, 2e-3 seen
SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 2,
        "global_batch_size": IMAGES,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
        "model": {"backbone": "resnet18", "head_hidden_size": 32, "projection_size": 16},
        "refine": {"clustering_group_size": GROUP},
        "curriculum": {"schedule": "constant", "initial_num_clusters": 5, "hold_epochs": 0},
        "optim": {"base_lr": 32.0, "warmup_epochs": 0, "base_target_ema": 0.9, "weight_decay": 1e-3},
    }
)


def made_batch() -> Batch:
    """Images of four quarters in colours of their own, so that no row lies between two clusters; noise as views."""
    generator = torch.Generator().manual_seed(3)
    quarters = 2 * torch.randn(IMAGES, 3, 2, 2, generator=generator)
    images = F.interpolate(quarters, size=(64, 64)) + 0.1 * torch.randn(IMAGES, 3, 64, 64, generator=generator)
    low = torch.rand(IMAGES, 2, 2, generator=generator) * 0.4
    superpixels = torch.arange(16, dtype=torch.int32).view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    return Batch(
        images=images,
        superpixels=superpixels.expand(IMAGES, 64, 64),
        views=torch.randn(IMAGES, 2, 3, 64, 64, generator=generator),
        crop_box=torch.cat([low, low + 0.4 + 0.2 * torch.rand(IMAGES, 2, 2, generator=generator)], 2),
        flipped=torch.rand(IMAGES, 2, generator=generator) < 0.5,
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plain_refined_map(model: R2O, batch: Batch, seeds: list[np.ndarray]) -> np.ndarray:
    """Superpixel means of the target's C4, Lloyd's iterations by NumPy, then each cell's nearest centre."""
    with torch.no_grad():
        c4 = copy.deepcopy(model.target)["backbone"].forward_c4(batch.images.double()).numpy()
    maps = []
    for group, centres in enumerate(seeds):
        cells = []
        for b in range(group * GROUP, (group + 1) * GROUP):
            # superpixel s covers cell s alone: 16 × 16 pixels
            cells += [unit(c4[b, :, y, x]) for y, x in itertools.product(range(CELLS), repeat=2)]
        rows = np.stack(cells)
        for _ in range(SETTINGS.refine.kmeans_iterations):
            nearest = ((rows[:, None] - centres[None]) ** 2).sum(2).argmin(1)
            centres = np.stack([rows[nearest == k].mean(0) for k in range(len(centres))])
        maps.append(((rows[:, None] - centres[None]) ** 2).sum(2).argmin(1).reshape(GROUP, CELLS, CELLS))
    return np.concatenate(maps)


def test_a_step_equals_the_float64_reference() -> None:
    plan, world = plan_batches(SETTINGS, num_samples=IMAGES, num_ranks=1), World(0, 1, torch.device("cpu"))
    training, batch = build_training(SETTINGS, plan, world, max_superpixels=16), made_batch()
    model = unwrapped(training.model)
    before, reference = copy.deepcopy(model), copy.deepcopy(model).double()

    # the seeds are ours, whatever follows is not
    uniforms = seeding_uniforms(5, seed=0, step=0, first_group=0, num_groups=IMAGES // GROUP)
    with torch.no_grad():
        c4 = copy.deepcopy(model.target)["backbone"].forward_c4(batch.images)
    rows = F.normalize(pool_regions(c4, batch.superpixels, max_superpixels=16).features, dim=2)
    rows = rows.reshape(IMAGES // GROUP, -1, rows.shape[2])
    seeds = kmeans(rows, torch.ones(rows.shape[:2], dtype=torch.bool), uniforms=uniforms, iterations=0).centres
    refined_map = plain_refined_map(reference, batch, [s.double().numpy() for s in seeds])

    host = HostBatch.__new__(HostBatch, *([None] * len(HostBatch._fields)))._replace(skipped=())
    figures = train_step(training, [LocalBatch(host, batch)], step=0).figures
    in_double = batch._replace(views=batch.views.double())
    loss = plain_reference(reference, in_double, torch.from_numpy(refined_map), 5)
    loss.backward()
    assert figures.loss == pytest.approx(loss.item(), rel=1e-5)
    learned = [(n, p, r) for (n, p), r in zip(model.named_parameters(), reference.parameters(), strict=True)]
    learned = [(n, p, r) for n, p, r in learned if p.requires_grad]
    norm = float(sum(r.grad.square().sum() for _, _, r in learned)) ** 0.5
    assert figures.grad_norm == pytest.approx(norm, rel=1e-3)
    old = dict(before.named_parameters())
    for name, p, r in learned:
        error = (p.grad.double() - r.grad).norm().item()
        assert error < CLOSE * r.grad.norm().item() + 1e-6 * norm, name
        expected, _ = reference_step(
            r.detach().numpy(), r.grad.numpy(), 0.0, lr=SETTINGS.peak_lr, momentum=0.9, decay=1e-3, eta=1e-3
        )
        moved = np.linalg.norm(expected - old[name].detach().double().numpy())
        assert np.linalg.norm(p.detach().double().numpy() - expected) < CLOSE * moved + 1e-6, name
    online = dict(model.online.named_parameters())
    for name, p in model.target.named_parameters():
        torch.testing.assert_close(p, 0.9 * old[f"target.{name}"] + 0.1 * online[name])
