"""The configurations that are not the paper's, and the evaluations of all: every value typed here, none exempt."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.foundation.settings import load_settings
from preprocess.config import SceneSettings, ShardSettings
from tests.train.config.test_configs import CONFIGS, NOT_THE_PAPER_S, PAPER, TABLE, flat, settings_of, takes_steps
from train.config.evals import EvalVocSettings, load_evaluation_settings
from train.config.frozen import EvalFrozenSettings

# What two cores have time for (docs/small_machines.md): of the paper's values, those that differ.
FOR_TWO_CORES: dict[str, Any] = {
    "global_batch_size": 32,
    "data.image_size": 96,
    "data.view_size": 64,
    "augment.blur_kernel_size": 7,
    "model.backbone": "resnet18",
    "model.head_hidden_size": 512,
    "model.projection_size": 128,
    "curriculum.initial_num_clusters": 32,
    "optim.base_lr": 8.0,
    "optim.warmup_epochs": 0.5,
    "optim.base_target_ema": 0.98,
}
SMALL: dict[str, dict[str, Any]] = {
    "demo": {**FOR_TWO_CORES, "epochs": 8, "data.crop_scale": (0.3, 1.0), "curriculum.hold_epochs": 0},
    "imagenette_r18": {**FOR_TWO_CORES, "epochs": 32, "curriculum.hold_epochs": 2},
    "imagenette_methods": {**FOR_TWO_CORES, "epochs": 16, "curriculum.hold_epochs": 1},
}
IMAGES_PER_SHARD = {"demo": 256, "imagenette_r18": 512, "imagenette_methods": 512}
COUNT = {"imagenette_methods": 2000}
OF_EVALUATIONS_ALONE = {"eval_frozen", "voc_fcn"}

# A.2: 30k iterations, batch 16, crops of 513, ratios 0.5 to 2, two convolutions of 256 with dilation 6, weight decay
# 1e-4, drops at 0.7 and 0.9; 0.01 is the middle of its rates. The rest is MMSegmentation's fcn_r50-d8 for VOC.
EVAL_VOC: dict[str, Any] = {
    "seeds": (0,),
    "inits": ("run",),
    "iterations": 30_000,
    "batch_size": 16,
    "lr": 0.01,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "lr_drops": (0.7, 0.9),
    "short_side": None,
    "crop_size": 513,
    "scale_range": (0.5, 2.0),
    "flip_probability": 0.5,
    "max_class_share": 0.75,
    "photometric_distortion": True,
    "head_channels": 256,
    "head_convs": 2,
    "head_dilation": 6,
    "concat_input": True,
    "dropout": 0.1,
    "auxiliary_weight": 0.4,
    "auxiliary_channels": 256,
    "auxiliary_convs": 1,
    "auxiliary_dilation": 1,
    "loss_over": "all_pixels",
    "report_classes": (),
    "train_list": "train",
    "train_masks": "SegmentationClass",
    "val_list": "val",
}
SHORT = {
    "batch_size": 8, "lr": 0.1, "crop_size": 96, "scale_range": (0.75, 1.5), "photometric_distortion": False,
    "head_dilation": 2,
}  # fmt: skip
EVAL_VOC_OF: dict[str, dict[str, Any]] = {
    "voc_fcn": {"seeds": (0, 1, 2)},
    "demo": {
        **SHORT, "inits": ("run", "random", "random-bn"), "iterations": 40, "head_channels": 64,
        "auxiliary_channels": 64,
    },
    "imagenette_r18": {
        **SHORT, "seeds": (0, 1, 2), "inits": ("run", "random"), "iterations": 400, "short_side": 128,
        "report_classes": ("background", "cat", "cow", "dog", "horse", "sheep", "person"),
    },
    "imagenette_methods": {
        **SHORT, "inits": ("run",), "iterations": 400, "short_side": 128, "train_list": "trainaug",
        "train_masks": "SegmentationClassAug",
        "report_classes": ("background", "cat", "cow", "dog", "horse", "sheep", "person"),
    },
}  # fmt: skip

LINEAR = {"log10_c": (-6.0, 5.0), "num_c": 8, "selection_share": 0.1, "max_iterations": 1000}
EVAL_FROZEN: dict[str, Any] = flat(
    {
        "protocols": None,
        "baselines": ("random", "random-bn"),
        "data": {
            "layout": "auto", "train_list": None, "val_list": None, "train_masks": None, "val_masks": None,
            "objects": "classes", "split": None, "first_class_id": None, "max_images": None,
        },
        "features": {"dilate_c5": False, "batch_size": 32, "dtype": "float16", "batch_norm_images": 2048},
        "linear": {"level": "c5", "size": 224, "seeds": (0,), **LINEAR},
        "knn": {
            "level": "c5", "size": 224, "seeds": (0,), "k": (1, 3, 10, 30), "distances": ("cosine", "l2"),
            "selection_share": 0.1,
        },
        "context": {
            "level": "c5", "size": 224, "seeds": (0,), "k": 30, "temperature": 0.02, "memory_cells": None,
        },
        "overclustering": {
            "level": "c5", "size": 224, "seeds": (0, 1, 2, 3, 4), "pca": 50, "clusters": 500, "iterations": 100,
            "restarts": 5, "rows_per_cluster": 256, "score_size": 100,
        },
        "discovery": {"level": "c5", "size": 448, "seeds": (0,), "most_seeds": 100},
        "classes": {"level": "c5", "size": 224, "seeds": (0,), "k": (10, 20, 100), "temperature": 0.07, **LINEAR},
        # Table 3: K = 5
        "cub": {
            "level": "c4", "size": 224, "seeds": (0,), "clusters": 5, "restarts": 10, "iterations": 50,
            "normalize_features": True,
        },
        "abo": {
            "level": "c4", "size": 224, "seeds": (0, 1, 2), "clusters": None, "group_size": 32,
            "batch_norm": "running", "superpixels": None,
        },
        "report_classes": (),
    }
)  # fmt: skip
EVAL_FROZEN_OF: dict[str, dict[str, Any]] = {
    "demo": {
        "protocols": ("linear", "abo"), "linear.level": "c4", "linear.size": 128, "abo.size": 128, "abo.seeds": (0,),
    },
    "imagenette_r18": {"classes.size": 128, "linear.level": "c4", "linear.size": 128},
    "imagenette_methods": {
        "classes.size": 128, "linear.level": "c4", "linear.size": 128, "knn.level": "c4", "knn.size": 128,
        "context.level": "c4", "context.size": 128, "overclustering.level": "c4", "overclustering.size": 128,
        "overclustering.seeds": (0, 1, 2), "abo.size": 192, "abo.clusters": 4,
    },
}  # fmt: skip

EVERY = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def path_of(name: str) -> Path:
    return CONFIGS / f"{name}.yaml"


def test_every_configuration_is_in_a_table() -> None:
    assert [*EVERY] == sorted([*TABLE, *SMALL, *OF_EVALUATIONS_ALONE])


@pytest.mark.parametrize("name", SMALL)
def test_every_value_of_a_small_pretraining_is_the_table_s(name: str) -> None:
    settings = settings_of(name)
    left_out = {f"data.{field}" for field in type(settings.data).NOT_CONTENT} | NOT_THE_PAPER_S
    found = flat(settings.model_dump())
    assert {k: v for k, v in found.items() if not {k, k.split(".")[0]} & left_out} == PAPER | SMALL[name]
    assert settings.peak_lr == 1.0
    precision = "bf16" if name == "imagenette_methods" else "auto"
    assert (settings.run.precision, settings.run.channels_last) == (precision, True)


@pytest.mark.parametrize("name", sorted(OF_EVALUATIONS_ALONE))
def test_what_only_evaluates_says_nothing_of_pretraining(name: str) -> None:
    assert {key: flat(settings_of(name).model_dump())[key] for key in PAPER} == PAPER
    assert load_settings(ShardSettings, "shards", path_of(name)) == ShardSettings()


@pytest.mark.parametrize("name", SMALL)
def test_small_superpixels_are_slic_with_100_segments_at_96(name: str) -> None:
    shards = load_settings(ShardSettings, "shards", path_of(name))
    assert shards.superpixels.model_dump() == {
        "size": 96, "resample": "bilinear", "backend": "fast_slic", "segments": 100, "compactness": 10.0,
        "iterations": 5, "min_size_factor": 0.1,
    }  # fmt: skip
    assert (shards.images_per_shard, shards.maps, shards.count) == (IMAGES_PER_SHARD[name], {}, COUNT.get(name))


def test_the_demo_s_scenes() -> None:
    assert load_settings(SceneSettings, "scenes", path_of("demo")).model_dump() == {
        "pretrain_images": 1280, "train_images": 256, "val_images": 224, "size": 128, "seed": 0,
        "shapes": ("disc", "box", "triangle", "star", "ring", "cross"), "objects": (2, 5), "void_width": 1,
        "quality": 95,
    }  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_every_value_of_the_evaluations_is_the_table_s(name: str) -> None:
    voc = load_evaluation_settings(EvalVocSettings, path_of(name))
    assert voc.model_dump(exclude=set(voc.NOT_CONTENT)) == EVAL_VOC | EVAL_VOC_OF.get(name, {})
    frozen = load_evaluation_settings(EvalFrozenSettings, path_of(name))
    assert flat(frozen.model_dump()) == EVAL_FROZEN | EVAL_FROZEN_OF.get(name, {})


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", SMALL)
def test_every_small_configuration_takes_a_step(name: str, mapped_shards: Path) -> None:
    takes_steps(name, mapped_shards)
