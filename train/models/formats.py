"""A backbone's weights under the names that other libraries give them, and to their files. Nothing is guessed.

Our own names are torchvision's, without the classifier.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from train.models.backbone import image_size_of, make_backbone

FORMATS = ("torchvision", "timm", "detectron2", "mmseg")
SUFFIXES = (".pth", ".pt", ".safetensors")
DIGEST = "r2o_sha256"  # in the metadata of our .safetensors, a form that has no checksum of its own
OWN_LAYERS = ("c4_layer.", "c5_layer.")  # of R2O's ViT, in no library's
COUNTER = ".num_batches_tracked"
_SAFETENSORS_RAISES = (OSError, RuntimeError, LookupError, ValueError, SafetensorError)
_TIMM_VIT = {
    "ln_1.": "norm1.", "self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj.": "attn.proj.",
    "ln_2.": "norm2.", "mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2.",
}  # fmt: skip


def names_in(name: str, format: str, *, image_size: int = 224) -> dict[str, str]:
    """Our key → the library's, for every weight of backbone `name` that the library's model has.

    detectron2 has no counters of batches, and of a ViT torchvision and timm lack the layers that R2O adds (A.5).

    Raises:
        InputError: the library has no such backbone, or there is no such format.
    """
    names = _names_with_counters(name, format, image_size)
    return {key: theirs for key, theirs in names.items() if format != "detectron2" or not key.endswith(COUNTER)}


def _names_with_counters(name: str, format: str, image_size: int) -> dict[str, str]:
    rename = _renaming(name, format)
    return {key: rename(key) for key in _expected(name, image_size) if not key.startswith(OWN_LAYERS)}


def _renaming(name: str, format: str) -> Callable[[str], str]:
    if format not in FORMATS:
        raise InputError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    if not name.startswith("vit"):
        return _detectron2_name if format == "detectron2" else str  # the others name ResNets as torchvision does
    if format in ("torchvision", "timm"):
        return _timm_vit_name if format == "timm" else str
    raise InputError(f"{format} has no {name} of this kind; export it as torchvision or timm")


def _detectron2_name(key: str) -> str:
    """`layer1.0.bn1.bias` → `res2.0.conv1.norm.bias`, `conv1.weight` → `stem.conv1.weight`."""
    layer = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", key)
    block = f"res{int(layer[1]) + 1}.{layer[2]}." if layer else "stem."
    rest = layer[3] if layer else key
    rest = rest.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return block + re.sub(r"^bn(\d)\.", r"conv\1.norm.", rest)


def _timm_vit_name(key: str) -> str:
    block = re.fullmatch(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)", key)
    if block is None:
        fixed = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
        return fixed.get(key, key.replace("conv_proj.", "patch_embed.proj.").replace("encoder.ln.", "norm."))
    (ours, theirs) = next(pair for pair in _TIMM_VIT.items() if block[2].startswith(pair[0]))
    return f"blocks.{block[1]}.{theirs}{block[2].removeprefix(ours)}"


def _expected(name: str, image_size: int) -> dict[str, Tensor]:
    """Our keys of a backbone, with tensors that have shape and dtype only."""
    with torch.device("meta"):
        expected: dict[str, Tensor] = make_backbone(name, image_size=image_size).state_dict()
    return expected


def to_format(weights: Mapping[str, Tensor], name: str, format: str) -> dict[str, Tensor]:
    """Weights of a `make_backbone(name)` under a library's names. Raises InputError where a key does not fit."""
    names = names_in(name, format, image_size=image_size_of(weights))
    left = [k for k in weights if k not in names and not k.startswith(OWN_LAYERS)]
    unknown = [key for key in left if not (format == "detectron2" and key.endswith(COUNTER))]
    missing = [key for key in names if key not in weights]
    if unknown or missing:
        raise InputError(f"{(unknown + missing)[0]}: {'not of' if unknown else 'missing from'} {name}, so not exported")
    return {theirs: weights[ours].detach().cpu().contiguous().clone() for ours, theirs in names.items()}


def write_weights(path: Path, weights: Mapping[str, Tensor], format: str, *, metadata: Mapping[str, str]) -> None:
    """Write weights under a library's names in the form that it loads; atomic.

    `.safetensors` holds `metadata` too, and a checksum of the weights. A `.pth` holds the plain dict, for mmseg below
    `state_dict`, for detectron2 below `model` beside `matching_heuristics`, by which its checkpointer matches names by
    their ends, so that FPN and C4 models both take it; without, it would load nothing and go on.

    Raises:
        InputError: another suffix.
    """
    check_suffix(path)
    if path.suffix == ".safetensors":
        told = {"format": "pt", **metadata, DIGEST: sha256_of_weights(weights)}
        write_atomic(path, safetensors.torch.save(dict(weights), metadata=told))
        return
    wrapped: dict[str, Any] = dict(weights)
    if format == "mmseg":
        wrapped = {"meta": dict(metadata), "state_dict": wrapped}
    if format == "detectron2":
        wrapped = {"model": wrapped, "__author__": "R2O", "matching_heuristics": True}
    buffer = io.BytesIO()
    torch.save(wrapped, buffer)
    write_atomic(path, buffer.getvalue())


def metadata_of(path: Path) -> dict[str, str] | None:
    """What a `.safetensors` says beside its weights; None where a file is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except _SAFETENSORS_RAISES:
        return None


def is_file_of_weights(path: Path) -> bool:
    """Whether a file begins and ends as one of torch.save, or as a `.safetensors`; its content is not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return metadata_of(path) is not None


def sha256_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_suffix(path: Path) -> None:
    """Raises InputError where a file's name does not say how it is written."""
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
