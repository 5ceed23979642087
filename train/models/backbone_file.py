"""The backbone of a run as a file: what evaluations load."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artifacts.run_files import BACKBONE_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, image_size_of, make_backbone
from train.models.torch_file import DamagedError, load_torch_file

BACKBONE_FORMAT = "r2o.backbone"
BACKBONE_FORMAT_VERSION = 1
_MEMBERS = ("format", "format_version", "backbone", "mean", "std", "fingerprint", "state_dict")


@dataclass(frozen=True, kw_only=True)
class ExportedBackbone:
    """A backbone and what it expects: RGB in [0, 1], from which `mean` is taken and which `std` divides."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    state_dict: dict[str, Tensor]

    def build(self, *, dilate_c5: bool = False) -> Backbone:
        """A new module with these weights."""
        model = make_backbone(self.name, dilate_c5=dilate_c5, image_size=image_size_of(self.state_dict))
        model.load_state_dict(self.state_dict, strict=True)
        return model


def save_backbone(
    path: Path,
    backbone: nn.Module,
    *,
    name: str,
    fingerprint: str,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Write a backbone atomically, on CPU and contiguous; equal weights give equal bytes.

    Args:
        backbone: a `make_backbone(name)`.
        name: resnet18, 34, 50, 101 or 152, vit_s_16 or vit_b_16.
        fingerprint: of the run that made it.
        mean, std: of RGB in [0, 1], as it was trained.
    """
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in backbone.state_dict().items()}
    problem = mismatch(name, weights)
    assert problem is None, problem
    head = (BACKBONE_FORMAT, BACKBONE_FORMAT_VERSION, name, [float(m) for m in mean], [float(s) for s in std])
    values = (*head, fingerprint, weights)
    buffer = io.BytesIO()
    torch.save(dict(zip(_MEMBERS, values, strict=True)), buffer)
    write_atomic(path, buffer.getvalue())


def read_backbone(path: Path) -> ExportedBackbone:
    """Read what `save_backbone` wrote, whose checksums must fit. No code in the file is run (weights_only).

    Raises:
        DamagedError: it was changed or cut short. InputError: not such a file, another format version, or weights that
            are not exactly the named backbone's.
    """
    try:
        loaded = load_torch_file(path, what="backbone")
    except DamagedError as error:
        raise DamagedError(f"{error}; the `make pretrain` that made the run writes it again") from None
    problem = _problem(loaded)
    if problem:
        raise InputError(f"{path}: {problem}; `make pretrain` with this r2o writes one that fits")
    return ExportedBackbone(
        name=loaded["backbone"],
        mean=tuple(loaded["mean"]),
        std=tuple(loaded["std"]),
        fingerprint=loaded["fingerprint"],
        state_dict=loaded["state_dict"],
    )


def load_run_backbone(run: Path) -> ExportedBackbone:
    """The backbone of a finished run. Raises InputError where the folder or its backbone is missing."""
    if not run.is_dir():
        raise InputError(f"{run}: no such run folder; `make pretrain SHARDS=… RUN={run}` makes it")
    if not (run / BACKBONE_NAME).is_file():
        raise InputError(f"{run}: no {BACKBONE_NAME}, so this is no finished run; `make pretrain SHARDS=… RUN={run}`")
    return read_backbone(run / BACKBONE_NAME)


def _problem(loaded: Any) -> str | None:
    if not isinstance(loaded, dict) or loaded.get("format") != BACKBONE_FORMAT:
        return "not a backbone that r2o wrote"
    if loaded.get("format_version") != BACKBONE_FORMAT_VERSION:
        return f"format version {loaded.get('format_version')!r}, but this r2o reads {BACKBONE_FORMAT_VERSION}"
    if set(loaded) != set(_MEMBERS):
        return f"damaged: its members are {', '.join(map(str, loaded))}"
    if not isinstance(loaded["backbone"], str) or not isinstance(loaded["fingerprint"], str):
        return "damaged: backbone and fingerprint must be text"
    if not (_three_numbers(loaded["mean"]) and _three_numbers(loaded["std"]) and min(loaded["std"]) > 0):
        return "damaged: mean and std must be three finite numbers each, std above 0"
    weights = loaded["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        return "damaged: state_dict is no dict of weights by name"
    if others := [key for key, value in weights.items() if not isinstance(value, Tensor)]:
        return f"damaged: {others[0]} is no tensor"
    return mismatch(loaded["backbone"], loaded["state_dict"])


def _three_numbers(values: object) -> bool:
    if not isinstance(values, list) or len(values) != 3:
        return False
    return all(isinstance(v, float) and math.isfinite(v) for v in values)


def mismatch(name: str, weights: Mapping[str, Any]) -> str | None:
    """The first way in which `weights` are not those of backbone `name`, or None."""
    try:
        with torch.device("meta"):
            expected = make_backbone(name, image_size=image_size_of(weights)).state_dict()
    except KeyError:
        return f"unknown backbone {name!r}"
    if missing := sorted(expected.keys() - weights.keys()):
        return f"{len(missing)} weights of {name} are missing, the first is {missing[0]}"
    if extra := sorted(weights.keys() - expected.keys()):
        return f"{len(extra)} weights are not of {name}, the first is {extra[0]}"
    for key, value in expected.items():
        given = weights[key]
        if not isinstance(given, Tensor) or given.shape != value.shape or given.dtype != value.dtype:
            found = f"{tuple(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
            return f"{key} is {found}, but {name} has {tuple(value.shape)} {value.dtype}"
        if not bool(torch.isfinite(given).all()):
            return f"{key} holds values that are not finite"
    return None
