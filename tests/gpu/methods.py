"""Four methods as settings of one run: ResNet-18 on Imagenette at 128 px, in which nothing but the method differs."""

from __future__ import annotations

from pathlib import Path

from pipeline.foundation.settings import load_settings
from tests.evidence.methods import fixed
from tests.gpu.places import DRY, ROOT
from tests.gpu.runs import FAST, TINY_IMAGES
from train.config.evals import all_sections
from train.config.pretrain import PretrainSettings

CONFIG: Path = ROOT / "configs/imagenette_r18.yaml"
SIZE = 64 if DRY else 128

METHODS: dict[str, list[str]] = {
    "r2o": [],
    "byol": ["refine.clustering=none", "refine.regions=image", *fixed(1)],
    # As configs/imagenet1k_r50_detcon_b.yaml, but of SLIC's superpixels: Felzenszwalb's would take longer than the day.
    # And soft: C5 has 4 × 4 cells, so that hard masks would leave 16 of 100 superpixels.
    "detcon_b": [
        "refine.clustering=none",
        "data.view_superpixels=true",
        "objective.loss=detcon_b",
        "objective.view_masks=superpixels",
        "objective.masks_per_view=16",
        "objective.temperature=0.1",
        *fixed(16),
    ],
    "fixed_k4": [*fixed(4)],
}
SHARED = [
    "global_batch_size=128",
    f"data.image_size={SIZE}",
    f"data.view_size={SIZE}",
    "augment.blur_kernel_size=13",
    "run.log_every_steps=10",
    "run.probe_every_epochs=null",
    "run.milestone_every_epochs=null",
    "run.checkpoint_every_minutes=null",
    *FAST,
]
TINY = [
    *TINY_IMAGES,
    "global_batch_size=32",
    "model.head_hidden_size=64",
    "run.log_every_steps=1",
    "run.precision=fp32",  # of CPUs some take half a minute for a step in bf16
]


def sets_of(method: str, epochs: int) -> list[str]:
    """The settings of a run; R2O holds K for a sixteenth of it, as its config does."""
    return [
        f"epochs={epochs}",
        f"curriculum.hold_epochs={epochs / 16}",
        f"run.panels_every_epochs={max(1, epochs // 2)}",
        f"run.checkpoint_every_epochs={epochs}",
        *SHARED,
        *(TINY if DRY else []),
        *METHODS[method],
    ]


def settings_of(method: str, epochs: int) -> PretrainSettings:
    """The same, checked."""
    sets = [f"pretrain.{one}" for one in sets_of(method, epochs)]
    return load_settings(PretrainSettings, "pretrain", CONFIG, sets, all_sections())
