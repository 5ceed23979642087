"""What the panels show, where masks are superpixels of further maps."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts.label_maps import map_member
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import decode_label_map
from train.config.pretrain import PretrainSettings
from train.data.shards.open import max_superpixels, open_shards
from train.engine.build import build_model
from train.run.panels import Panels

SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 10,
        "global_batch_size": 8,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0, "superpixel_maps": {"slic4": 4, "slic32": 32}},
        "model": {"backbone": "resnet18", "head_hidden_size": 8, "projection_size": 4},
        "refine": {"clustering_group_size": 4, "clustering": "none"},
        "curriculum": {"schedule": "linear", "initial_num_clusters": 32, "hold_epochs": 0},
    }
)


@pytest.mark.parametrize(("epoch", "name"), [(0, "slic32"), (9, "slic4")])
def test_panels_show_the_map_that_the_epoch_trained_with(mapped_shards: Path, epoch: int, name: str) -> None:
    manifest = Manifest.read(mapped_shards)
    reader = open_shards(str(mapped_shards), manifest, SETTINGS.data)
    model = build_model(SETTINGS, max_superpixels=max_superpixels(manifest, SETTINGS))
    shown = Panels(reader, SETTINGS, torch.device("cpu")).refined_maps(model, epoch=epoch)
    ids = np.linspace(0, manifest.stored - 1, 4).astype(int)
    for sample_id, painted in zip(ids, shown, strict=True):
        label_map = decode_label_map(reader.read(int(sample_id), name).members[map_member(name)])
        assert np.array_equal(painted, label_map[8::16, 8::16])  # the ids at the centres of C4's cells
