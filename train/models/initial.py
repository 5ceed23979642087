"""The backbones that an evaluation starts from: those of a run, and random ones of the same architecture."""

from __future__ import annotations

from typing import Literal

from train.models.backbone import Backbone, build_backbone
from train.models.backbone_file import ExportedBackbone

InitName = Literal["run", "random"]


def initial_backbone(init: InitName, *, exported: ExportedBackbone, seed: int, dilate_c5: bool) -> Backbone:
    """A backbone to fine-tune.

    Args:
        init: "run" takes the exported weights; "random" takes their architecture only, its weights from `seed` alone.
        dilate_c5: as in `Backbone`; the weights are the same either way.
    """
    if init == "run":
        return exported.build(dilate_c5=dilate_c5)
    return build_backbone(exported.name, seed=seed, dilate_c5=dilate_c5)
