"""What pixels weights expect, and how their networks are built, where it is not the usual way."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.foundation.errors import InputError
from tests.train.models.weights.conftest import (
    Weights,
    caffe2,
    detectron2,
    haiku,
    mm_vit,
    prefixed,
    timm_vit,
    weights_of,
)
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, ResNetBackbone
from train.models.frozen import FrozenModel
from train.models.padding import SameConv2d
from train.models.plain_vit import PlainViT
from train.models.weights.init import load_init
from train.models.weights.load import LoadedBackbone, load_backbone

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
BGR_MEAN = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)  # detectron2's PIXEL_MEAN; its PIXEL_STD is 1


def frozen(loaded: LoadedBackbone) -> FrozenModel:
    return FrozenModel(loaded.build(image_size=64), mean=loaded.mean, std=loaded.std)


def msra_c5(blobs: dict[str, np.ndarray], images: Tensor, bias: Tensor | None = None) -> Tensor:
    """A ResNet-50 of one block a stage as MSRA's, written out: BGR, scale and bias, stride in the 1 × 1."""

    def layer(x: Tensor, name: str, norm: str, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, torch.from_numpy(blobs[f"{name}_w"]), bias if name == "conv1" else None, stride, padding)
        scale, shift = (torch.from_numpy(blobs[f"{norm}_bn_{kind}"]).view(-1, 1, 1) for kind in "sb")
        return x * scale + shift

    x = F.relu(layer(images.flip(1).float() - BGR_MEAN, "conv1", "res_conv1", 2, 3))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(2, 6):
        name, stride = f"res{stage}_0_branch", 1 if stage == 2 else 2
        y = F.relu(layer(x, f"{name}2a", f"{name}2a", stride))
        y = layer(F.relu(layer(y, f"{name}2b", f"{name}2b", 1, 1)), f"{name}2c", f"{name}2c")
        x = F.relu(y + layer(x, f"{name}1", f"{name}1", stride))
    return x


@pytest.mark.parametrize("with_bias", [False, True])
def test_msras_resnets_compute_what_they_do_in_detectron2(with_bias: bool, tmp_path: Path) -> None:
    blobs = caffe2(weights_of("resnet50"))
    bias = torch.linspace(-1, 1, 64) if with_bias else None
    content = blobs | ({"conv1_b": bias.numpy()} if bias is not None else {})
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content))
    loaded = load_backbone(tmp_path / "R-50.pkl")
    assert any("BGR from 0 to 255 with stride 2 in the 1 × 1" in note for note in loaded.notes)
    expected = msra_c5(blobs, IMAGES, bias)
    torch.testing.assert_close(frozen(loaded)(IMAGES).c5, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("more", "bgr"),
    [
        ({"__author__": "Detectron2 Model Zoo"}, True),
        ({"pixel_mean": BGR_MEAN}, True),
        ({"pixel_mean": BGR_MEAN.flip(0)}, False),
        ({"__author__": "torchvision"}, False),
        ({}, False),
    ],
)
def test_detectron2s_own_models_are_told_from_converted_ones(more: dict[str, Any], bgr: bool, tmp_path: Path) -> None:
    weights = weights_of("resnet50")
    tensors = {key: value for key, value in more.items() if isinstance(value, Tensor)}
    tensors |= prefixed("backbone.bottom_up.", detectron2(weights))
    torch.save({"model": tensors, **{k: v for k, v in more.items() if isinstance(v, str)}}, tmp_path / "w.pth")
    loaded = load_backbone(tmp_path / "w.pth")
    assert loaded.std == (pytest.approx((1 / 255,) * 3) if bgr else IMAGENET_STD)
    first = weights["conv1.weight"]
    assert torch.equal(loaded.weights["conv1.weight"], first.flip(1) if bgr else first)
    block = loaded.build().layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == (((2, 2), (1, 1)) if bgr else ((1, 1), (2, 2)))
    assert any("does not tell its pixels" in note for note in loaded.notes) == (not more)


def test_timms_config_beside_the_file_tells_its_pixels(tmp_path: Path) -> None:
    save_file(timm_vit(weights_of("vit_b_16")), tmp_path / "model.safetensors")
    assert load_backbone(tmp_path / "model.safetensors").mean == IMAGENET_MEAN
    config = {
        "architecture": "vit_base_patch16_224",
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_backbone(tmp_path / "model.safetensors")
    assert (loaded.mean, loaded.std) == ((0.5,) * 3, (0.5,) * 3)
    assert "those of config.json beside it" in loaded.notes[-1]
    for broken in ("{", "[]", '{"pretrained_cfg": {"mean": [1], "std": 3}}', '{"pretrained_cfg": 3}'):
        (tmp_path / "config.json").write_text(broken)
        assert load_backbone(tmp_path / "model.safetensors").mean == IMAGENET_MEAN


def test_openmmlabs_caffe_style_is_refused(tmp_path: Path) -> None:
    content = {
        "meta": {"cfg": "backbone=dict(style='caffe')"},
        "state_dict": prefixed("backbone.", weights_of("resnet18")),
    }
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="takes BGR or strides as Caffe's"):
        load_backbone(tmp_path / "w.pth")


def test_haikus_resnets_pad_as_same(tmp_path: Path) -> None:
    params, state = haiku(weights_of("resnet50"))
    np.save(tmp_path / "w.npy", np.array({"params": params, "state": state}, dtype=object), allow_pickle=True)
    loaded = load_backbone(tmp_path / "w.npy")
    assert isinstance(loaded.build().conv1, SameConv2d)
    plain = ResNetBackbone("resnet50").eval()
    plain.load_state_dict(loaded.weights)
    assert not torch.allclose(plain(torch.ones(1, 3, 64, 64)).c5, loaded.build().eval()(torch.ones(1, 3, 64, 64)).c5)


def sin_cos(weights: Weights) -> Weights:
    """MoCo v3's and MAE's fixed position embedding of a 2 × 2 grid, as their code builds it."""
    width = weights["class_token"].shape[2]
    omega = 1 / 10000 ** (torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(2.0), torch.arange(2.0), indexing="ij")
    parts = [f(torch.outer(place.flatten(), omega)) for place in (rows, columns) for f in (torch.sin, torch.cos)]
    embedding = torch.cat([torch.zeros(1, width), torch.cat(parts, 1)])[None]
    return {**weights, "encoder.pos_embedding": embedding}


def test_a_small_vit_that_may_have_twelve_heads_needs_its_format(tmp_path: Path) -> None:
    for rename in (timm_vit, mm_vit):
        weights = prefixed("backbone.", rename(sin_cos(weights_of("vit_s_16"))))
        torch.save({"state_dict": weights, "meta": {}}, tmp_path / "w.pth")
        with pytest.raises(InputError, match="MoCo v3's has 12 heads and others 6"):
            load_backbone(tmp_path / "w.pth")
    torch.save(timm_vit(sin_cos(weights_of("vit_s_16"))), tmp_path / "w.pth")
    heads = {}
    for format in ("mocov3", "dino"):
        model = load_backbone(tmp_path / "w.pth", format=format).build(image_size=32)
        assert isinstance(model, PlainViT)
        heads[format] = model.encoder.layers[0].self_attention.num_heads
    assert heads == {"mocov3": 12, "dino": 6}
    torch.save(timm_vit(sin_cos(weights_of("vit_b_16"))), tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth").form.heads is None


@pytest.mark.parametrize(
    ("case", "message"),
    [("msra", "heads, strides or padding"), ("grid", "for images of 32 px, but pretraining's have 64")],
)
def test_pretraining_begins_with_what_it_builds_alone(case: str, message: str, tmp_path: Path) -> None:
    if case == "msra":
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(caffe2(weights_of("resnet50"))))
    else:
        (tmp_path / "w.pkl").write_bytes(
            pickle.dumps({k: v.numpy() for k, v in timm_vit(weights_of("vit_b_16")).items()})
        )
    with pytest.raises(InputError, match=message):
        load_init(tmp_path / "w.pkl", "resnet50" if case == "msra" else "vit_b_16", image_size=64)


def test_a_backbone_is_built_for_the_size_that_is_asked_for(tmp_path: Path) -> None:
    torch.save(timm_vit(weights_of("vit_b_16")), tmp_path / "w.pth")
    loaded = load_backbone(tmp_path / "w.pth")
    assert loaded.form.grid == 2
    assert loaded.build(image_size=96).encoder.pos_embedding.shape == (1, 37, 768)
    with pytest.raises(InputError, match="no C5 stage to dilate"):
        loaded.build(dilate_c5=True)
    torch.save(weights_of("resnet18"), tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth").build(dilate_c5=True)(torch.ones(1, 3, 64, 64)).c5.shape[2:] == (4, 4)
