"""The part `shards`: the shards that the others read, from generated images and from photographs where there are some.

Photographs lie in $DATA, or beside the checkout in ../shared/data: imagenet1k_sample and imagenette/train.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard  # this needs fast_slic, as nothing else of the day does
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from tests.gpu.places import DATA, DRY, SHARDS
from tests.gpu.telling import tell
from tests.train.made_shards import write_images

PHOTOS, IMAGENETTE = DATA / "imagenet1k_sample", DATA / "imagenette/train"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        write_images(Path(scratch) / "tiny", count=70)
        make("tiny", Path(scratch) / "tiny", images_per_shard=16, superpixels={"size": 64, "segments": 25})
        if DRY:
            return
        if PHOTOS.is_dir():
            make("photos", PHOTOS, images_per_shard=64)
        if IMAGENETTE.is_dir():
            make("nette", IMAGENETTE, images_per_shard=256, superpixels={"size": 128})
    for folder in (PHOTOS, IMAGENETTE):
        if not folder.is_dir():
            tell("no photographs", folder=folder)


def make(name: str, images: Path, **settings: Any) -> None:
    """Shards of all images of a folder, in place of what lies there."""
    shutil.rmtree(SHARDS / name, ignore_errors=True)
    job = ShardJob(SHARDS / name, Plan(list_images(images), ShardSettings.model_validate(settings)))
    job.load()
    job.begin()
    for number in job.pending():
        job.record(make_shard(job.task(number), folder=job.folder))
    tell(f"shards {name}", images=job.finish().stored)


if __name__ == "__main__":
    main()
