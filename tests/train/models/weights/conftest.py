"""Small backbones with random weights, under the names that projects give them; the names are typed here by hand."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from train.models import backbone
from train.models.weights import form
from train.models.weights.form import Form

Weights = dict[str, Tensor]
SMALL = {"resnet18": [1, 1, 1, 1], "resnet50": [1, 1, 1, 1], "resnet34": [2, 1, 1, 1]}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage, and two blocks of a ViT."""
    for name, layers in SMALL.items():
        block, _ = backbone._ARCHITECTURES[name]
        monkeypatch.setitem(backbone._ARCHITECTURES, name, (block, layers))
    for size, (width, _, heads) in list(form._PLAIN_VITS.items()):
        monkeypatch.setitem(form._PLAIN_VITS, size, (width, 2, heads))


def weights_of(name: str, *, seed: int = 0, grid: int = 2, **kwargs: Any) -> Weights:
    """Random values of a backbone, its running variances above 0, its counters 7."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, shape in Form(name=name, grid=grid, **kwargs).shapes().items():
        value = torch.randn(shape.shape, generator=generator) * 0.05
        made[key] = torch.tensor(7) if not shape.is_floating_point() else value.abs() + 0.5 if "var" in key else value
    return made


def prefixed(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in weights.items()}


def without_counters(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def sequential(weights: Weights) -> Weights:
    """`nn.Sequential(*resnet.children())`."""
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {re.sub(r"^\w+", lambda found: places[found[0]], key): value for key, value in weights.items()}


def detectron2(weights: Weights) -> Weights:
    """As tools/convert-torchvision-to-d2.py of detectron2."""
    renamed = {}
    for key, value in weights.items():
        name = key if "layer" in key else f"stem.{key}"
        for stage in range(1, 5):
            name = name.replace(f"layer{stage}", f"res{stage + 1}")
        for number in range(1, 4):
            name = name.replace(f"bn{number}", f"conv{number}.norm")
        renamed[name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = value
    return renamed


def caffe2(weights: Weights) -> dict[str, np.ndarray]:
    """MSRA's: scale and bias alone, blue first."""
    renamed = {}
    for key, value in weights.items():
        if "running" in key or "tracked" in key:
            continue
        kind = "w" if value.ndim == 4 else "s" if key.endswith("weight") else "b"
        found = re.match(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", key)
        if found is None:
            name = "conv1_w" if kind == "w" else f"res_conv1_bn_{kind}"
        else:
            branch = "1" if "downsample" in key else "2" + "abc"[int(found[4]) - 1]
            name = f"res{int(found[1]) + 1}_{found[2]}_branch{branch}{'' if kind == 'w' else '_bn'}_{kind}"
        renamed[name] = (value.flip(1) if name == "conv1_w" else value).numpy()
    return renamed


def haiku(weights: Weights) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and state of haiku's ResNet: kernels (height, width, in, out), batch norm (1, 1, 1, channels)."""
    params: dict[str, Any] = {"projector/linear": {"w": np.ones((2, 3), np.float32)}}
    state: dict[str, Any] = {}
    for key, value in weights.items():
        found = re.match(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)", key)
        is_conv, kind = value.ndim == 4, key.rpartition(".")[2]
        layer = "conv" if is_conv else "batchnorm"
        if found is None:
            module = f"res_net50/~/initial_{layer}"
        else:
            last = f"shortcut_{layer}" if "downsample" in key else f"{layer}_{int(found[4]) - 1}"
            module = f"res_net50/~/block_group_{int(found[1]) - 1}/~/block_{found[2]}/~/{last}"
        array = (value.permute(2, 3, 1, 0) if is_conv else value.reshape(1, 1, 1, -1)).numpy().copy()
        if kind in ("running_mean", "running_var"):
            kept = {"hidden": array, "average": array, "counter": np.array(7, np.int32)}
            state[f"{module}/~/{'mean_ema' if kind == 'running_mean' else 'var_ema'}"] = kept
        elif not kind.endswith("tracked"):
            theirs = "w" if is_conv else {"weight": "scale", "bias": "offset"}[kind]
            params.setdefault(module, {})[theirs] = array
    return params, state


def _vit_renamed(pairs: Mapping[str, str]) -> Callable[[Weights], Weights]:
    def rename(weights: Weights) -> Weights:
        renamed = {}
        for key, value in weights.items():
            name = key
            for ours, theirs in pairs.items():
                name = name.replace(ours, theirs)
            renamed[name] = value
        return renamed

    return rename


timm_vit = _vit_renamed({
    "encoder.layers.encoder_layer_": "blocks.", "ln_1": "norm1", "ln_2": "norm2", "self_attention.in_proj_":
    "attn.qkv.", "self_attention.out_proj": "attn.proj", "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2",
    "class_token": "cls_token", "encoder.pos_embedding": "pos_embed", "conv_proj": "patch_embed.proj",
    "encoder.ln": "norm",
})  # fmt: skip
mm_vit = _vit_renamed({
    "encoder.layers.encoder_layer_": "layers.", "ln_1": "ln1", "ln_2": "ln2", "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj": "attn.proj", "mlp.0": "ffn.layers.0.0", "mlp.3": "ffn.layers.1",
    "class_token": "cls_token", "encoder.pos_embedding": "pos_embed", "conv_proj": "patch_embed.projection",
    "encoder.ln": "ln1",
})  # fmt: skip
