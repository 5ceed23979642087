"""Images made from nothing, and folders of them."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images


def _picture(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A smooth picture with some edges in it, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = rng.integers(0, 256, 3)
    return pixels


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    return _picture


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """A picture in any of Pillow's formats and modes."""

    def encode(pixels: np.ndarray, kind: str = "JPEG", *, mode: str = "RGB", **options: object) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Fills a folder with `count` small JPEGs, in class folders where classes are named."""

    def make(root: Path, count: int, *, classes: tuple[str, ...] = ()) -> Path:
        for number in range(count):
            folder = root / classes[number % len(classes)] if classes else root
            folder.mkdir(parents=True, exist_ok=True)
            jpeg = simplejpeg.encode_jpeg(_picture(number, 40 + number % 7, 32), quality=90)
            (folder / f"image {number}.jpg").write_bytes(jpeg)
        return root

    return make


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_folder):
    root = make_folder(tmp_path_factory.mktemp("source") / "images", 11, classes=("cat", "dog"))
    (root / "dog" / "broken.jpg").write_bytes(b"text")
    return root


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "shards"
    settings = ShardSettings(images_per_shard=4, maps={"grid": {"backend": "grid", "rows": 3}}, max_bad_fraction=0.5)
    job = ShardJob(folder, Plan(list_images(images), settings))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(task, folder=job.folder))
    job.finish()
    return folder


@pytest.fixture
def shards(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "shards"))
