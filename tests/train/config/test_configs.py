"""Every configuration of the paper: its resolved values against tables typed from the paper, and a step of each.

All others, and the evaluations: test_small_configs.py.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import load_settings
from preprocess.config import ShardSettings
from train.config.batches import plan_batches, run_learning_rate, run_target_ema
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import host_batches
from train.data.shards.open import max_superpixels, open_shards
from train.distributed.world import World
from train.engine.build import build_training
from train.engine.step import train_step

CONFIGS = Path(__file__).parents[3] / "configs"

# Section 4 and A.1, and what they leave open as docs/paper_map.md says. `run` and how data is read are not the paper's.
PAPER: dict[str, Any] = {
    "seed": 0,
    "epochs": 300,
    "global_batch_size": 4096,
    "data.image_size": 224,
    "data.view_size": 224,
    "data.crop_scale": (0.08, 1.0),
    "data.crop_ratio": (3 / 4, 4 / 3),
    "data.view_superpixels": False,
    "data.superpixel_maps": {},
    "augment.flip_probability": 0.5,
    "augment.jitter_probability": 0.8,
    "augment.brightness": 0.4,
    "augment.contrast": 0.4,
    "augment.saturation": 0.2,
    "augment.hue": 0.1,
    "augment.grayscale_probability": 0.2,
    "augment.blur_probability": (1.0, 0.1),
    "augment.blur_kernel_size": 23,
    "augment.blur_sigma": (0.1, 2.0),
    "augment.solarize_probability": (0.0, 0.2),
    "augment.solarize_threshold": 128,
    "model.backbone": "resnet50",
    "model.head_hidden_size": 4096,
    "model.projection_size": 256,
    "model.head_output_bias": False,
    "model.concatenate_views": False,
    "model.init": "torchvision",
    "refine.clustering": "kmeans",
    "refine.regions": "superpixels",
    "refine.grid": None,
    "refine.clustering_group_size": 32,
    "refine.kmeans_iterations": 10,
    "refine.normalize_features": True,
    "refine.assign": "cell",
    "objective.loss": "byol",
    "objective.view_masks": "refined",
    "objective.hard_masks": False,
    "objective.rows": "valid",
    "objective.min_pool_area": 0.0,
    "objective.min_valid_area": 1e-3,
    "objective.mask_weight": "equal",
    "objective.directions": "sum",
    "objective.roi_aligned": True,
    "objective.masks_per_view": 16,
    "objective.temperature": 0.1,
    "curriculum.schedule": "quarter_cosine",
    "curriculum.initial_num_clusters": 128,
    "curriculum.final_num_clusters": 4,
    "curriculum.hold_epochs": 40,
    "curriculum.first_epoch": 0,
    "optim.base_lr": 0.3,
    "optim.warmup_epochs": 3,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-6,
    "optim.trust_coefficient": 1e-3,
    "optim.base_target_ema": 0.99,
    "optim.lars": "deepmind",
    "optim.lr_scale_by_clusters": None,
    "optim.target_ema_batch_size": None,
    "optim.target_update": "after_step",
}
NOT_THE_PAPER_S = {"run", "data.shuffle_lanes", "data.lane_groups", "data.augment", "data.decode"}


def k(initial: int, final: int, schedule: str, hold: float) -> dict[str, Any]:
    names = ("initial_num_clusters", "final_num_clusters", "schedule", "hold_epochs")
    return {f"curriculum.{name}": value for name, value in zip(names, (initial, final, schedule, hold), strict=True)}


# 4.4: "ImageNet100 for 100 epochs"; Table A5's first row is linear. A.7's constraints bind where regions are painted.
ABLATION = {
    "epochs": 100, "global_batch_size": 1024, "optim.warmup_epochs": 1, "refine.assign": "superpixel",
    **k(128, 4, "linear", 0),
}  # fmt: skip
LONG = {**ABLATION, "epochs": 300, "optim.warmup_epochs": 3, **k(128, 4, "quarter_cosine", 40)}  # A.4, A.5
GRID = {"refine.clustering": "none", "refine.regions": "grid"}

TABLE: dict[str, dict[str, Any]] = {
    "imagenet1k_r50_paper": {},
    "imagenet1k_r50_authors_release": {
        "augment.flip_probability": 1.0, "model.head_output_bias": True, "model.concatenate_views": True,
        "refine.assign": "superpixel", "objective.rows": "all", "objective.min_pool_area": 1.0,
        "objective.roi_aligned": False, "objective.directions": "mean", "curriculum.hold_epochs": 0,
        "curriculum.first_epoch": 1, "optim.lars": "release", "optim.lr_scale_by_clusters": 16,
        "optim.target_update": "before_targets",
    },
    "imagenet1k_r50_8gpu": {"global_batch_size": 1024, "optim.target_ema_batch_size": 4096},
    "imagenet1k_r50_byol": {"refine.clustering": "none", "refine.regions": "image", **k(1, 1, "constant", 0)},
    "imagenet1k_r50_detcon_b": {
        "data.view_superpixels": True, "data.superpixel_maps": {"felzenszwalb": 16}, "refine.clustering": "none",
        "objective.loss": "detcon_b", "objective.view_masks": "superpixels",
        "objective.hard_masks": True,
    },
    "coco_r50": {},
    "imagenet100_r50": ABLATION,
    "imagenet100_r50_1gpu": ABLATION,
    "imagenet100_table4_16_to_4": {**ABLATION, **k(16, 4, "linear", 0)},
    "imagenet100_table4_64_to_4": {**ABLATION, **k(64, 4, "linear", 0)},
    "imagenet100_table4_128_to_4": ABLATION,
    "imagenet100_table4_256_to_4": {**ABLATION, **k(256, 4, "linear", 0)},
    "imagenet100_table4_4_to_16": {**ABLATION, **k(4, 16, "linear", 0)},
    "imagenet100_table4_4_to_64": {**ABLATION, **k(4, 64, "linear", 0)},
    "imagenet100_table4_4_to_128": {**ABLATION, **k(4, 128, "linear", 0)},
    "imagenet100_table4_4_to_256": {**ABLATION, **k(4, 256, "linear", 0)},
    "imagenet100_tableA5_linear": ABLATION,
    "imagenet100_tableA5_cosine": {**ABLATION, **k(128, 4, "quarter_cosine", 13)},
    "imagenet100_tableA5_piecewise": {**ABLATION, **k(128, 4, "piecewise", 0)},
    "imagenet100_tableA5_fixed_128": {**ABLATION, **k(128, 128, "constant", 0)},
    "imagenet100_tableA5_fixed_64": {**ABLATION, **k(64, 64, "constant", 0)},
    "imagenet100_tableA5_fixed_4": {**ABLATION, **k(4, 4, "constant", 0)},
    "imagenet100_tableA5_spatial_10x10": {**ABLATION, "refine.regions": "grid", "refine.grid": (10, 10)},
    "imagenet100_tableA5_spatial_2x2": {**ABLATION, "refine.regions": "grid", "refine.grid": (2, 2)},
    "imagenet100_table5_row1": {**ABLATION, **GRID, "refine.grid": (10, 10), **k(128, 128, "constant", 0)},
    "imagenet100_table5_row2": {**ABLATION, "refine.regions": "cells", **k(128, 128, "constant", 0)},
    "imagenet100_table5_row3": {**ABLATION, **GRID},
    "imagenet100_table5_row4": {**ABLATION, "refine.regions": "grid", "refine.grid": (10, 10)},
    "imagenet100_table5_row5": {
        **ABLATION, "refine.clustering": "none",
        "data.superpixel_maps": {f"slic{n}": n for n in (4, 8, 16, 32, 64, 128)},
    },
    "imagenet100_table5_row6": {**ABLATION, **k(128, 128, "constant", 0)},
    "imagenet100_table5_row7": ABLATION,
    "imagenet100_tableA3_byol": LONG,
    "imagenet100_tableA3_nt_xent": {**LONG, "objective.loss": "nt_xent"},
    "imagenet100_tableA4_vit_b": {**LONG, "model.backbone": "vit_b_16"},
}  # fmt: skip


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and name != "superpixel_maps"
        result |= flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return result


def settings_of(name: str, *overrides: str) -> PretrainSettings:
    return load_settings(PretrainSettings, "pretrain", CONFIGS / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", TABLE)
def test_every_resolved_value_is_the_table_s(name: str) -> None:
    settings = settings_of(name)
    not_content = {f"data.{field}" for field in type(settings.data).NOT_CONTENT} | NOT_THE_PAPER_S
    resolved = {
        key: value
        for key, value in flat(settings.model_dump()).items()
        if key not in not_content and key.split(".")[0] not in not_content
    }
    assert resolved == PAPER | TABLE[name]
    assert settings.peak_lr == pytest.approx({4096: 4.8, 1024: 1.2}[settings.global_batch_size])


@pytest.mark.parametrize("name", TABLE)
def test_superpixels_are_slic_with_100_segments_at_224(name: str) -> None:
    shards = load_settings(ShardSettings, "shards", CONFIGS / f"{name}.yaml")
    assert shards.superpixels.model_dump() == {
        "size": 224, "resample": "bilinear", "backend": "fast_slic", "segments": 100, "compactness": 10.0,
        "iterations": 5, "min_size_factor": 0.1,
    }  # fmt: skip
    further = {key: made.model_dump() for key, made in shards.maps.items()}
    if name == "imagenet1k_r50_detcon_b":  # DetCon: scale 1000, minimum size 1000, the image at its own size
        assert further["felzenszwalb"] == {
            "size": 224, "resample": "bilinear", "backend": "felzenszwalb", "scale": 1000, "min_size": 1000,
            "sigma": 0.8, "segmented_at": "native",
        }  # fmt: skip
    assert set(further) == set(TABLE[name].get("data.superpixel_maps", {}))
    assert all(f"slic{made['segments']}" == key for key, made in further.items() if key != "felzenszwalb")
    assert (shards.source.format, shards.source.split) == ("coco" if name == "coco_r50" else "auto", "train2017")


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("imagenet1k_r50_paper", {0: 128, 39: 128, 40: 128, 100: 119, 200: 74, 300: 4}),  # A.8
        ("imagenet100_table4_256_to_4", {0: 256, 50: 130, 100: 4}),
        # Of epochs 0 … 99 the last is one step short of the final K: 4 + 1.24, and 128 - 1.24.
        ("imagenet100_table4_128_to_4", {0: 128, 1: 126, 99: 5, 100: 4}),
        ("imagenet100_table4_4_to_128", {0: 4, 1: 5, 50: 66, 99: 126, 100: 128}),
        ("imagenet1k_r50_authors_release", {0: 127, 1: 127, 298: 4, 299: 4}),  # of epochs 1 … 300
        ("imagenet100_tableA5_piecewise", {0: 128, 16: 128, 17: 64, 34: 32, 50: 16, 67: 8, 84: 4, 99: 4}),
        ("imagenet100_tableA5_fixed_64", {0: 64, 99: 64}),
    ],
)
def test_k_by_epoch(name: str, epochs: dict[int, int]) -> None:
    settings = settings_of(name)
    assert {epoch: settings.num_clusters(epoch) for epoch in epochs} == epochs


def test_the_eight_gpu_recipe_scales_its_target_ema() -> None:
    settings = settings_of("imagenet1k_r50_8gpu")
    plan = plan_batches(settings, num_samples=1_281_167, num_ranks=8)
    assert plan.local_batch_size == 128
    assert run_target_ema(settings, 0, plan) == pytest.approx(0.99**0.25)
    assert run_target_ema(settings, plan.total_steps, plan) == 1


def test_the_release_scales_its_learning_rate_by_clusters() -> None:
    settings = settings_of("imagenet1k_r50_authors_release")
    plan = plan_batches(settings, num_samples=1_281_167, num_ranks=128)
    assert run_learning_rate(settings, 3 * 312, plan) == pytest.approx(4.8 * 127 / 16)
    middle = 4.8 * 0.5 * (1 + math.cos(math.pi * (149 - 3) / (300 - 3))) * 91 / 16  # 4 + 124 · cos(45°), cut off
    assert run_learning_rate(settings, 149 * 312, plan) == pytest.approx(middle)


def test_the_map_nearest_to_k_is_read() -> None:
    settings = settings_of("imagenet100_table5_row5")
    read = [settings.superpixel_map(epoch) for epoch in range(100)]
    assert read[0] == "slic128"
    assert read[99] == "slic4"
    assert [name for i, name in enumerate(read) if i == 0 or read[i - 1] != name] == [
        f"slic{n}" for n in (128, 64, 32, 16, 8, 4)
    ]
    assert settings_of("imagenet1k_r50_detcon_b").superpixel_map(7) == "felzenszwalb"
    assert settings_of("imagenet1k_r50_paper").superpixel_map(7) == MAIN_MAP


def test_hard_masks_are_of_superpixels_alone() -> None:
    with pytest.raises(InputError, match="hard_masks: true needs view_masks: superpixels; refined masks stay soft"):
        settings_of("imagenet1k_r50_paper", "pretrain.objective.hard_masks=true")


SMALL = (
    "global_batch_size=8", "data.image_size=64", "data.view_size=64", "data.num_workers=0", "data.shuffle_lanes=4",
    "augment.blur_kernel_size=5", "model.head_hidden_size=32", "model.projection_size=8",
    "refine.clustering_group_size=4", "run.precision=fp32", "run.local_batch_size=null", "run.accumulation=1",
)  # fmt: skip


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", TABLE)
def test_every_configuration_takes_a_step(name: str, mapped_shards: Path) -> None:
    """The first step and one of the last epoch, on real shards, with a small backbone of the same kind."""
    takes_steps(name, mapped_shards)


@pytest.mark.long
@pytest.mark.parametrize("name", ["imagenet1k_r50_paper", "imagenet1k_r50_authors_release"])
def test_the_recipes_take_a_step_with_a_whole_resnet18(name: str, mapped_shards: Path) -> None:
    takes_steps(name, mapped_shards)


def takes_steps(name: str, mapped_shards: Path) -> None:
    backbone = "vit_s_16" if "vit" in settings_of(name).model.backbone else "resnet18"
    settings = settings_of(name, *(f"pretrain.{one}" for one in (*SMALL, f"model.backbone={backbone}")))
    manifest, world = Manifest.read(mapped_shards), World(0, 1, torch.device("cpu"))
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=1)
    reader = open_shards(str(mapped_shards), manifest, settings.data)
    training = build_training(settings, plan, world, max_superpixels=max_superpixels(manifest, settings))
    model = training.model
    for step in (1, plan.total_steps - 1):
        host = next(iter(host_batches(reader, settings, range(step, step + 1), rank=0, num_ranks=1)))
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        local_batch = LocalBatch(host, to_device(host, settings, world.device))
        figures = train_step(training, [local_batch], step=step).figures
        assert np.isfinite([figures.loss, figures.grad_norm]).all()
        assert 0 < figures.loss < (20 if settings.objective.loss != "byol" else 8)
        assert figures.num_clusters == settings.num_clusters(step // plan.steps_per_epoch)
        assert 0 < figures.valid_fraction <= 1
        learned = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert not [n for n, p in learned.items() if p.grad is None or (n.endswith("weight") and not p.grad.any())]
        assert any(not torch.equal(before[n], p) for n, p in learned.items())
