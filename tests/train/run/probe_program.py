"""What one rank of test_probe.py does: the figures of a fresh model, as JSON."""

import json
import sys
from pathlib import Path

import torch

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.settings import load_settings
from train.config.pretrain import PretrainSettings
from train.data.shards.open import max_superpixels, open_shards
from train.distributed.replicas import distribute
from train.distributed.world import world_from_environment
from train.engine.build import build_model, unwrapped
from train.run.probe import Probe


def main() -> None:
    """Probe with cross-rank batch norm, as in a run."""
    out, shards, config = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    settings = load_settings(PretrainSettings, "pretrain", config)
    manifest = Manifest.read(shards)
    with world_from_environment() as world:
        probe = Probe(open_shards(str(shards), manifest, settings.data), settings, world)
        model = build_model(settings, max_superpixels=max_superpixels(manifest, settings)).train()
        figures = probe.figures(unwrapped(distribute(model, world)), epoch=1)
        (out / f"figures-{world.size}-{world.rank}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
