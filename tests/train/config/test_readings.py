"""The ablations run in both readings of the assignment of masks (docs/paper_map.md)."""

import pytest
import torch

from tests.train.config.test_configs import TABLE, settings_of
from train.engine.build import refinement_of
from train.r2o.kmeans import seeding_uniforms
from train.r2o.masks import grid_label_map, sample_label_map
from train.r2o.refine import refine, unrefined


@pytest.mark.parametrize("assign", ["superpixel", "cell"])
@pytest.mark.parametrize("name", [name for name in TABLE if name.startswith("imagenet100")])
def test_ablations_run_in_both_readings_of_the_assignment(name: str, assign: str) -> None:
    """Painted regions have one mask each, at 56 × 56; else cells go where they are nearest, whatever their region."""
    settings = settings_of(name, f"pretrain.refine.assign={assign}", "pretrain.refine.clustering_group_size=2")
    how, num_clusters = refinement_of(settings.refine, max_superpixels=64), settings.num_clusters(90)
    generator = torch.Generator().manual_seed(0)
    c4 = torch.randn(2, 32, 14, 14, generator=generator)
    superpixels = grid_label_map(8, 8, like=torch.zeros(2, 112, 112, dtype=torch.int32))
    if how.clustering == "none":
        refined = unrefined(superpixels, how, num_clusters=num_clusters, c4_size=(14, 14))
    else:
        uniforms = seeding_uniforms(num_clusters, seed=0, step=0, first_group=0, num_groups=1)
        refined = refine(c4, superpixels, how, uniforms=uniforms)
    is_painted = assign == "superpixel" and how.regions != "cells"
    assert refined.shape == ((2, 56, 56) if is_painted else (2, 14, 14))
    if how.regions == "cells" or (how.clustering == "none" and not is_painted):
        return
    regions = sample_label_map(how.region_map(superpixels, num_clusters), (refined.shape[1], refined.shape[2]))
    pairs = torch.stack([regions.long(), refined], 3).flatten(1, 2)
    masks_of_a_region = torch.cat([image.unique(dim=0)[:, 0].bincount() for image in pairs])
    assert (int(masks_of_a_region.max()) == 1) == is_painted
