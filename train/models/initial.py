"""The backbones that an evaluation starts from: those of a run, and random ones of the same architecture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from train.models.backbone import Backbone, build_backbone
from train.models.backbone_file import ExportedBackbone
from train.models.frozen import FrozenModel, set_batch_norm_statistics

InitName = Literal["run", "random", "random-bn"]
MEASURED_IMAGES = 2048  # training images that set the statistics of "random-bn", at most; part of its results


def initial_backbone(
    init: InitName,
    *,
    exported: ExportedBackbone,
    seed: int,
    dilate_c5: bool,
    images: Callable[[], Iterable[UInt8[Tensor, "b 3 h w"]]],
    device: torch.device,
) -> Backbone:
    """A backbone to fine-tune, on the CPU.

    Args:
        init: "run" takes the exported weights; "random" takes their architecture only, its weights from `seed` alone;
            "random-bn" has the weights of "random", and the batch-norm statistics of `images`.
        dilate_c5: as in `Backbone`; the weights are the same either way.
        images: gives batches on `device`, as `set_batch_norm_statistics` takes them; read for "random-bn" only.
        device: where statistics are measured.
    """
    if init == "run":
        return exported.build(dilate_c5=dilate_c5)
    backbone = build_backbone(exported.name, seed=seed, dilate_c5=dilate_c5)
    if init == "random-bn":
        measured = FrozenModel(copy.deepcopy(backbone), mean=exported.mean, std=exported.std).to(device)
        set_batch_norm_statistics(measured, images())
        backbone.load_state_dict(measured.backbone.state_dict())
    return backbone
