"""Weights that pretraining begins with (`--init`), from whatever file `load_backbone` takes."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pipeline.foundation.errors import InputError
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, make_backbone
from train.models.weights.form import Form
from train.models.weights.load import LoadedBackbone, load_backbone


class Init(NamedTuple):
    """Weights to begin with, by our keys.

    Attributes:
        absent: keys of ours that the file's project does not have.
        told: the share that was loaded, what was left out, and what was changed.
    """

    weights: dict[str, Tensor]
    format: str
    absent: tuple[str, ...]
    told: str = ""


def load_init(path: Path, name: str, *, image_size: int = 224) -> Init:
    """Read weights for a `make_backbone(name)` as `load_backbone` does, and no others.

    R2O's ViT has layers of C4 and C5 that other projects' files lack; they are `absent`.

    Raises:
        DamagedError: it was changed or cut short. InputError: not a file of weights, not of that backbone, or of one
            that is built otherwise than pretraining builds it.
    """
    loaded = load_backbone(path, backbone=name)
    if problem := _problem(loaded, image_size):
        raise InputError(f"{path}: {problem}, so that pretraining cannot begin with it")
    expected = make_backbone(name, image_size=image_size).state_dict() if loaded.form.patch else loaded.weights
    absent = tuple(key for key in expected if key not in loaded.weights)
    return Init(loaded.weights, loaded.format, absent, loaded.told)


def _problem(loaded: LoadedBackbone, image_size: int) -> str | None:
    form = loaded.form
    if form.patch and form.grid * form.patch != image_size:
        return (
            f"its position embedding is for images of {form.grid * form.patch} px, but pretraining's have {image_size}"
        )
    usual = Form(name=form.name, own_layers=form.own_layers, grid=form.grid)
    if form != usual:
        return "its network differs from ours in its heads, strides or padding"
    if (loaded.mean, loaded.std) != (IMAGENET_MEAN, IMAGENET_STD):
        return f"it takes RGB of mean {loaded.mean} and std {loaded.std}, not ImageNet's"
    return None
