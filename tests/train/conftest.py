"""Small real shards, made by the shard task itself (without Ray), for every test of the trainer."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.manifest import MANIFEST_NAME, QUARANTINE_NAME, Manifest, MapStats, encode_quarantine
from pipeline.foundation.files import write_atomic
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
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


def write_images(folder: Path, *, count: int, seed: int = 0) -> None:
    """Photographs of a kind: smooth noise with a bright rectangle, in two classes, of uneven sizes."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        width, height = (int(v) for v in rng.integers(48, 96, 2))
        noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)).copy()
        pixels[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        path = folder / f"class{i % 2}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def write_shards(images: Path, folder: Path, settings: ShardSettings) -> Manifest:
    """The shards of a folder of images, made one after the other in this process."""
    plan = Plan(list_images(images), settings)
    folder.mkdir(parents=True, exist_ok=True)
    results = [make_shard(task, folder=folder_at(folder)) for task in plan.tasks()]
    stored = sum(r.stats.samples for r in results)
    quarantine = encode_quarantine([])
    write_atomic(folder / QUARANTINE_NAME, quarantine)
    manifest = Manifest(
        settings=settings.content(),
        versions=plan.versions,
        fingerprint=plan.fingerprint,
        listed=plan.total,
        stored=stored,
        quarantined=0,
        ignored=0,
        superpixel_size=settings.superpixels.size,
        max_superpixels=max(r.max_superpixels[""] for r in results),
        maps={
            name: MapStats(size=made.size, max_superpixels=max(r.max_superpixels[name] for r in results))
            for name, made in settings.maps.items()
        },
        classes=plan.listing.classes,
        quarantine_sha256=hashlib.sha256(quarantine).hexdigest(),
        shards=tuple(r.stats for r in results),
    )
    write_atomic(folder / MANIFEST_NAME, manifest.encode())
    return manifest


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
