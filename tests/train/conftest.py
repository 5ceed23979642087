"""Small shards for every test of the trainer, made without fast_slic (tests/train/made_shards.py)."""

from pathlib import Path
from typing import Any

import pytest

from preprocess.config import ShardSettings
from tests.train.made_shards import write_images, write_shards
from train.models import backbone

# Settings of `pretrain` that make a run of a few seconds.
SMALL_RUN: dict[str, Any] = {
    "epochs": 1,
    "global_batch_size": 16,
    "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
    "augment": {"blur_kernel_size": 5},
    "model": {"backbone": "resnet18", "head_hidden_size": 8, "projection_size": 4},
    "refine": {"clustering_group_size": 8},
    "curriculum": {"initial_num_clusters": 8, "hold_epochs": 0},
}


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNets with one block a stage: for tests of what surrounds a network, not of the network."""
    for name, (block, _) in list(backbone._ARCHITECTURES.items()):
        monkeypatch.setitem(backbone._ARCHITECTURES, name, (block, [1, 1, 1, 1]))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 images in shards of 16: five shards, the last one shorter; label maps of 64 × 64."""
    folder = tmp_path_factory.mktemp("trainer")
    write_images(folder / "images", count=70)
    settings = ShardSettings.model_validate({"images_per_shard": 16, "superpixels": {"size": 64, "segments": 25}})
    write_shards(folder / "images", folder / "shards", settings)
    return folder / "shards"


@pytest.fixture(scope="session")
def mapped_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images with the further maps that configs/ read, of 64 × 64; what is named felzenszwalb is a grid."""
    folder = tmp_path_factory.mktemp("mapped")
    write_images(folder / "images", count=24)
    maps = {f"slic{n}": {"size": 64, "segments": n} for n in (4, 8, 16, 32, 64, 128)}
    maps["felzenszwalb"] = {"size": 64, "backend": "grid", "rows": 3, "columns": 3}
    settings = ShardSettings.model_validate(
        {"images_per_shard": 8, "superpixels": {"size": 64, "segments": 25}, "maps": maps}
    )
    write_shards(folder / "images", folder / "shards", settings)
    return folder / "shards"
