"""What pixels weights expect, where a file or the project that wrote it tells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.foundation.errors import InputError
from train.models.weights.detect import Held
from train.models.weights.names import DETECTRON2, TIMM_VIT, Naming, as_tensor
from train.models.weights.rules import MSRA_MEAN, MSRA_STD, Rule

_CAFFE_STYLE = re.compile(r"""style['"]?\s*[=:]\s*['"]caffe|to_rgb['"]?\s*[=:]\s*False""")
_ZOO = "Detectron2 Model Zoo"


class Pixels(NamedTuple):
    """RGB in [0, 1], from which `mean` is taken and which `std` divides; `bgr`: the file's weights take blue first."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool
    stride_in_1x1: bool
    notes: tuple[str, ...] = ()


def pixels_of(path: Path, content: Any, held: Held, rule: Rule, naming: Naming) -> Pixels:
    """By the row, but for detectron2's own models and timm's files with their config beside them.

    Raises:
        InputError: an OpenMMLab file whose config says that it takes BGR, which is not read.
    """
    pixels = Pixels(rule.mean, rule.std, rule.bgr, rule.stride_in_1x1, (_msra_note(),) if rule.bgr else ())
    if naming is DETECTRON2:
        return _of_detectron2(content, held, pixels)
    meta = content.get("meta") if isinstance(content, dict) else None
    config = meta.get("cfg", meta.get("config")) if isinstance(meta, dict) else None
    if isinstance(config, str) and _CAFFE_STYLE.search(config):
        raise InputError(
            f"{path}: its config says that it takes BGR or strides as Caffe's ResNets do, which r2o does not read of "
            "OpenMMLab's files; take the same model of style 'pytorch'"
        )
    return _of_hub(path, pixels) if rule.name == "timm" or naming is TIMM_VIT else pixels


def _msra_note() -> str:
    return (
        "trained on BGR from 0 to 255 with stride 2 in the 1 × 1 convolutions: the first convolution is turned to RGB, "
        "mean and std are those of RGB in [0, 1]"
    )


def _of_detectron2(content: Any, held: Held, pixels: Pixels) -> Pixels:
    """Its model zoo's detectors begin with MSRA's ResNets; what others convert with its script takes RGB."""
    author = content.get("__author__") if isinstance(content, dict) else None
    mean = next((held.arrays[name] for name in held.arrays if name.endswith("pixel_mean")), None)
    blue_first = mean is not None and float(as_tensor(mean).flatten()[0]) < float(as_tensor(mean).flatten()[-1])
    if author == _ZOO or blue_first:
        return Pixels(MSRA_MEAN, MSRA_STD, bgr=True, stride_in_1x1=True, notes=(_msra_note(),))
    if author is None and mean is None:
        note = "the file does not tell its pixels: RGB with ImageNet's mean and std, as projects convert for detectron2"
        return pixels._replace(notes=(note,))
    return pixels


def _of_hub(path: Path, pixels: Pixels) -> Pixels:
    """timm's `config.json`, which Hugging Face keeps beside model.safetensors or pytorch_model.bin."""
    config = path.parent / "config.json"
    if path.name not in ("model.safetensors", "pytorch_model.bin") or not config.is_file():
        return pixels
    mean, std = _numbers(config, "mean"), _numbers(config, "std")
    if mean is None or std is None:
        return pixels
    return pixels._replace(mean=mean, std=std, notes=(f"mean {mean} and std {std} are those of config.json beside it",))


def _numbers(config: Path, name: str) -> tuple[float, ...] | None:
    """Three numbers of `pretrained_cfg`, if they are there."""
    try:
        told = json.loads(config.read_bytes())
    except (ValueError, RecursionError):
        return None
    pretrained = told.get("pretrained_cfg") if isinstance(told, dict) else None
    values = pretrained.get(name) if isinstance(pretrained, dict) else None
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, float) and 0 < v < 1 for v in values):
        return None
    return tuple(values)
