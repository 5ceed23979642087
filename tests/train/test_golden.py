"""Golden losses: a fixed small run says the same numbers for as long as nobody means to change them.

A change that means to: `python -m tests.train.test_golden` writes golden_losses.json again; say why in its commit.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts.manifest import Manifest
from preprocess.config import ShardSettings
from preprocess.sources.listing import Source
from tests.train.made_shards import write_images, write_shards
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import host_batches
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import build_training
from train.engine.step import StepFigures, train_step

GOLDEN = Path(__file__).with_name("golden_losses.json")
SUPERPIXELS = Path(__file__).with_name("golden_superpixels.png")  # 8 × 8 maps, by number of the image
SHARDS = ShardSettings.model_validate({"images_per_shard": 16, "superpixels": {"size": 64, "segments": 25}})
SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 2,
        "global_batch_size": 16,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
        "augment": {"blur_kernel_size": 5},
        "model": {"backbone": "resnet18", "head_hidden_size": 64, "projection_size": 16},
        "refine": {"clustering_group_size": 8},
        "curriculum": {"schedule": "linear", "initial_num_clusters": 12, "hold_epochs": 0},
        # so small a rate that processors, whose sums round otherwise, stay within 2e-5 (AVX-512, AVX2, SSE kernels)
        "optim": {"base_lr": 0.1, "warmup_epochs": 0.5, "base_target_ema": 0.9},
    }
)


def small_run(shards: Path) -> list[StepFigures]:
    """Figures of every step, from shards to update, on one thread."""
    manifest, world = Manifest.read(shards), World(0, 1, torch.device("cpu"))
    plan = plan_batches(SETTINGS, num_samples=manifest.stored, num_ranks=1)
    reader = open_shards(str(shards), manifest, SETTINGS.data)
    training = build_training(SETTINGS, plan, world, max_superpixels=manifest.max_superpixels)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures = []
    for step, host in enumerate(host_batches(reader, SETTINGS, range(plan.total_steps), rank=0, num_ranks=1)):
        local_batch = LocalBatch(host, to_device(host, SETTINGS, world.device))
        figures.append(train_step(training, [local_batch], step=step).figures)
    torch.set_num_threads(threads)
    return figures


def golden_images(folder: Path) -> Path:
    """64 made-up photographs: four steps an epoch."""
    write_images(folder, count=64, seed=5)
    return folder


def golden_superpixels(number: int) -> np.ndarray:
    """What fast_slic made of a golden image: uint8 (64, 64). tests/preprocess/shards/test_superpixels.py holds it."""
    row, column = divmod(number, 8)
    with Image.open(SUPERPIXELS) as sheet:
        return np.asarray(sheet)[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]


def golden_shards(folder: Path) -> Path:
    def maps_of(pixels: np.ndarray, settings: ShardSettings, source: Source) -> dict[str, np.ndarray]:
        return {"": golden_superpixels(int(Path(source.name.decode()).stem))}

    write_shards(golden_images(folder / "images"), folder / "shards", SHARDS, maps_of=maps_of)
    return folder / "shards"


def test_a_small_run_is_the_golden_one_and_twice_the_same_to_the_bit(tmp_path: Path) -> None:
    shards = golden_shards(tmp_path)
    first, second = small_run(shards), small_run(shards)
    assert first == second
    assert [figures.loss for figures in first] == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-4)


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        losses = [figures.loss for figures in small_run(golden_shards(Path(scratch)))]
        GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
