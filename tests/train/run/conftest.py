"""Scenes with exact masks, and their superpixels."""

from pathlib import Path

import pytest

from preprocess.config import SceneSettings, ShardSettings
from preprocess.demo.make_scenes import make_scenes
from tests.train.made_shards import write_shards


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 scenes with exact masks and void outlines."""
    out = tmp_path_factory.mktemp("scenes") / "made"
    make_scenes(out, SceneSettings(pretrain_images=1, train_images=1, val_images=21, size=64))
    return out / "VOCdevkit"


@pytest.fixture(scope="session")
def voc_shards(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Superpixels of the scenes, more of them than the shards that are trained on have."""
    out = tmp_path_factory.mktemp("scenes") / "shards"
    settings = ShardSettings.model_validate({"superpixels": {"size": 48, "segments": 36}})
    write_shards(voc / "VOC2012" / "JPEGImages", out, settings)
    return out
