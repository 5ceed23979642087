"""How projects name the weights of one backbone, and what of ours each name is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]
_BLOCK = "encoder.layers.encoder_layer_"
_VIT_BLOCK_NAMES = {  # in a block of another library's → in ours
    "norm1.": "ln_1.", "norm2.": "ln_2.", "ln1.": "ln_1.", "ln2.": "ln_2.", "ln_1.": "ln_1.", "ln_2.": "ln_2.",
    "attn.qkv.": "self_attention.in_proj_", "attn.proj.": "self_attention.out_proj.",
    "attn.attn.in_proj_": "self_attention.in_proj_", "attn.attn.out_proj.": "self_attention.out_proj.",
    "mlp.fc1.": "mlp.0.", "mlp.fc2.": "mlp.3.", "ffn.layers.0.0.": "mlp.0.", "ffn.layers.1.": "mlp.3.",
}  # fmt: skip
_VIT_NAMES = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}


@dataclass(frozen=True)
class Naming:
    """The names of one backbone's weights in a project's files.

    Attributes:
        anchors: names that every backbone so named has; what stands before them is where a backbone lies.
        to_ours: their name → ours; an unknown one stays what it is, and fits nothing.
        change: their name and its values → ours, where an array is laid out otherwise.
    """

    name: str
    anchors: tuple[str, ...]
    to_ours: Callable[[str], str]
    change: Callable[[str, Tensor], Tensor] = lambda _, values: values


def _from_sequential(key: str) -> str:
    """`nn.Sequential(*resnet.children())`: 0 is conv1, 1 is bn1, 4 to 7 are the stages."""
    first, _, rest = key.partition(".")
    names = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return f"{names[first]}.{rest}" if first in names else key


def _from_detectron2(key: str) -> str:
    """`res2.0.conv1.norm.bias` → `layer1.0.bn1.bias`, `stem.conv1.weight` → `conv1.weight`."""
    found = re.fullmatch(r"res([2-5])\.(\d+)\.(.+)", key)
    block = f"layer{int(found[1]) - 1}.{found[2]}." if found else ""
    rest = found[3] if found else key.removeprefix("stem.")
    rest = rest.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    return block + re.sub(r"^conv(\d)\.norm\.", r"bn\1.", rest)


def _from_caffe2(key: str) -> str:
    """`res2_0_branch2a_bn_s` → `layer1.0.bn1.weight`, `conv1_w` → `conv1.weight`."""
    found = re.fullmatch(r"(?:res([2-5])_(\d+)_branch(1|2[abc])|(?:res_)?conv1)(_bn)?_(w|s|b|rm|riv)", key)
    if found is None:
        return key
    stage, block, branch, norm, kind = found.groups()
    layer = {None: ("conv1", "bn1"), "1": ("downsample.0", "downsample.1")}.get(branch)
    if layer is None:
        number = "abc".index(branch[1]) + 1
        layer = (f"conv{number}", f"bn{number}")
    ours = {"w": "weight", "s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}[kind]
    return (f"layer{int(stage) - 1}.{block}." if stage else "") + f"{layer[bool(norm)]}.{ours}"


def _from_haiku(key: str) -> str:
    """`res_net50/~/block_group_0/~/block_0/~/conv_0/w` → `layer1.0.conv1.weight`."""
    kinds = {"w": "weight", "scale": "weight", "offset": "bias", "mean_ema/average": "running_mean"}
    kinds |= {"var_ema/average": "running_var"}
    found = re.fullmatch(
        r"(?:.*block_group_(\d)/~/block_(\d+)/~/|.*?)(initial_|shortcut_)?(conv|batchnorm)(?:_(\d))?/(?:~/)?(.+)", key
    )
    if found is None or found[6] not in kinds:
        return key
    group, block, place, layer, number, kind = found.groups()
    if place == "initial_":
        return f"{'conv' if layer == 'conv' else 'bn'}1.{kinds[kind]}"
    if group is None or (place is None) == (number is None):
        return key
    short = f"{'conv' if layer == 'conv' else 'bn'}{int(number or 0) + 1}"
    module = f"downsample.{int(layer == 'batchnorm')}" if place else short
    return f"layer{int(group) + 1}.{block}.{module}.{kinds[kind]}"


def _change_haiku(key: str, values: Tensor) -> Tensor:
    """Kernels are (height, width, in, out); batch norm's are (1, 1, 1, channels)."""
    return values.permute(3, 2, 0, 1) if key.endswith("/w") and values.ndim == 4 else values.flatten()


def _from_vit(key: str) -> str:
    """torchvision's own, of its first version too, whose MLP was `linear_1` and `linear_2`."""
    return key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")


def _from_other_vit(key: str) -> str:
    """timm's, MMPretrain's and MMSegmentation's: `blocks.0.attn.qkv.weight`, `layers.0.ln1.weight`."""
    found = re.fullmatch(r"(?:blocks|layers)\.(\d+)\.(.+)", key)
    if found is None:
        key = _VIT_NAMES.get(key, key)
        key = re.sub(r"^patch_embed\.proj(ection)?\.", "conv_proj.", key)
        return re.sub(r"^(norm|ln1)\.", "encoder.ln.", key)
    for theirs, ours in _VIT_BLOCK_NAMES.items():
        if found[2].startswith(theirs):
            return f"{_BLOCK}{found[1]}.{ours}{found[2].removeprefix(theirs)}"
    return key


RESNET = Naming("ResNet", ("layer1.0.conv1.weight", "layer4.0.conv1.weight", "layer2.0.bn1.weight"), str)
SEQUENTIAL = Naming("ResNet's children", ("4.0.conv1.weight", "7.0.conv1.weight", "5.0.bn1.weight"), _from_sequential)
DETECTRON2 = Naming("detectron2", ("res2.0.conv1.weight", "res4.0.conv1.weight"), _from_detectron2)
CAFFE2 = Naming("Caffe2", ("res2_0_branch2a_w", "res4_0_branch2a_w"), _from_caffe2)
HAIKU_ANCHORS = ("initial_conv/w", "initial_conv_1/w")
HAIKU = Naming("haiku", HAIKU_ANCHORS, _from_haiku, _change_haiku)
VIT = Naming("torchvision ViT", (f"{_BLOCK}0.ln_1.weight", f"{_BLOCK}1.ln_2.weight"), _from_vit)
TIMM_VIT = Naming("timm ViT", ("blocks.0.norm1.weight", "blocks.1.norm2.weight"), _from_other_vit)
MM_VIT = Naming("OpenMMLab ViT", ("layers.0.ln1.weight", "layers.1.ln2.weight"), _from_other_vit)
NAMINGS = (RESNET, SEQUENTIAL, DETECTRON2, CAFFE2, HAIKU, VIT, TIMM_VIT, MM_VIT)


def roots(naming: Naming, paths: frozenset[str]) -> set[str]:
    """What stands before a naming's anchors in a file: where backbones so named may lie."""
    found = set()
    for path in paths:
        for anchor in naming.anchors:
            head = path.removesuffix(anchor)
            if head != path and (not head or head[-1] in "./"):
                found.add(head if naming is not HAIKU else re.sub(r"[^/]+/~/$", "", head))
    return found


def as_tensor(values: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """A tensor on the CPU of a tensor or an array, of whatever byte order."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
