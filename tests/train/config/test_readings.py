"""The readings of what the paper leaves open: the assignment of masks, and the epochs of K (docs/paper_map.md)."""

import pytest
import torch

from tests.train.config.test_configs import TABLE, settings_of
from train.config.pretrain import PretrainSettings
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


def test_epochs_counted_from_1_end_with_the_final_k_of_the_linear_schedule() -> None:
    """The release's: for epoch in 1 … T, int(K_0 + (K_f - K_0) · epoch / T)."""
    counted = "pretrain.curriculum.first_epoch=1"
    falling, rising = (settings_of(f"imagenet100_table4_{k}", counted) for k in ("128_to_4", "4_to_128"))
    assert [falling.num_clusters(e) for e in (0, 1, 49, 98, 99)] == [126, 125, 66, 5, 4]
    assert [rising.num_clusters(e) for e in (0, 49, 98, 99)] == [5, 66, 126, 128]


@pytest.mark.parametrize(
    ("initial", "final", "schedule"), [(128, 4, "linear"), (64, 4, "piecewise"), (128, 4, "quarter_cosine")]
)
def test_a_rising_schedule_is_the_falling_one_backwards(initial: int, final: int, schedule: str) -> None:
    falling, rising = (
        PretrainSettings.model_validate(
            {
                "epochs": 100,
                "curriculum": {
                    "schedule": schedule, "initial_num_clusters": a, "final_num_clusters": b, "hold_epochs": 10,
                },
            }
        )
        for a, b in ((initial, final), (final, initial))
    )  # fmt: skip
    assert [rising.num_clusters(e) for e in range(101)] == [falling.num_clusters(100 - e) for e in range(101)]
