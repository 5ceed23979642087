"""What one rank of test_ranks.py does: a pass into a folder; what it read lies beside it."""

import json
import sys
from pathlib import Path

from tests.train.evals.frozen.made_images import MadeImages
from train.distributed.environment import adopt_ranks
from train.distributed.world import World, world_from_environment
from train.evals.frozen.extraction.extract import FeaturePass, extract
from train.models.backbone import build_backbone
from train.models.frozen import FrozenModel


def whole_pass(folder: Path, world: World) -> None:
    images = MadeImages()
    task = FeaturePass(
        label="made", images=images, weights={"sha256": "abc"}, backbone="resnet18", size=64, dilate_c5=False,
        batch_size=4, dtype="float16",
    )  # fmt: skip
    model = FrozenModel(build_backbone("resnet18", seed=1), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    extract(task, folder, arrays=("c4", "c5", "pooled"), load_model=lambda: model, world=world, note_seconds=0.0)
    (folder / f"read-{world.rank}.json").write_text(json.dumps(sorted(images.was_read)))


if __name__ == "__main__":
    adopt_ranks()
    with world_from_environment() as this_world:
        whole_pass(Path(sys.argv[1]), this_world)
