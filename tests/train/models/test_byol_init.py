"""Random weights as BYOL draws them: against SciPy's truncated normal, and against what zero gains make of a block."""

import math

import pytest
import torch
from scipy.stats import kstest, truncnorm
from torch import nn

from train.config.pretrain import ModelSettings, PretrainSettings
from train.engine.build import build_model
from train.models.backbone import build_backbone
from train.models.byol_init import draw_as_byol
from train.models.heads import Head
from train.r2o.model import R2O

pytestmark = pytest.mark.usefixtures("shallow")


def drawn(name: str, seed: int = 0) -> nn.Module:
    backbone = build_backbone(name, seed=3)
    torch.manual_seed(seed)
    draw_as_byol(backbone)
    return backbone


def fan_in(layer: nn.Module) -> int:
    """Inputs of one output: by the layer's own sizes."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    assert isinstance(layer, nn.Conv2d)
    return layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]


@pytest.mark.parametrize("kind", ["backbone", "head"])
def test_weights_are_normal_by_fan_in_and_cut_off_at_two_deviations(kind: str) -> None:
    head = Head(64, hidden_size=128, out_size=48, output_bias=True)
    module = build_backbone("resnet50", seed=3) if kind == "backbone" else head
    torch.manual_seed(1)
    draw_as_byol(module)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(layers) in (2, 17)
    for layer in layers:
        deviation = 1 / math.sqrt(fan_in(layer))
        values = layer.weight.detach().flatten().double()
        values = values[:: max(1, len(values) // 20_000)]
        assert 1.9 * deviation < values.abs().max() <= 2 * deviation * (1 + 1e-6)
        assert kstest(values.numpy() / deviation, truncnorm(-2, 2).cdf).pvalue > 1e-4
        assert layer.bias is None or not layer.bias.any()


def test_bottleneck_blocks_begin_as_their_shortcut() -> None:
    """Haiku's BlockV1: batchnorm_2 with scale_init zeros; a block then is ReLU(batch norm(1 × 1 convolution))."""
    backbone = drawn("resnet50").train()
    block = backbone.layer2[0]
    x = torch.rand(2, 256, 8, 8)
    torch.testing.assert_close(block(x), block.downsample(x).clamp(min=0))
    norms = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.BatchNorm2d)}
    zero = {name for name, norm in norms.items() if not norm.weight.any()}
    assert zero == {f"layer{i}.0.bn3" for i in (1, 2, 3, 4)}
    assert all(bool((norm.weight == 1).all()) for name, norm in norms.items() if name not in zero)
    assert not any(norm.bias.any() for norm in norms.values())


def test_basic_blocks_have_no_zero_gain() -> None:
    """Nor have Haiku's: ResNet-18's blocks are no bottlenecks."""
    assert all(bool((m.weight == 1).all()) for m in drawn("resnet18").modules() if isinstance(m, nn.BatchNorm2d))


def built(seed: int = 0, init: str = "byol", weights: dict[str, torch.Tensor] | None = None) -> R2O:
    model = ModelSettings(backbone="resnet18", head_hidden_size=32, projection_size=16, init=init)
    return build_model(PretrainSettings(seed=seed, model=model), max_superpixels=9, init=weights)


def test_a_run_begins_with_them_in_backbone_and_heads_by_its_seed_alone() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = built().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    again, other, usual = built().state_dict(), built(seed=1).state_dict(), built(init="torchvision").state_dict()
    for key, value in first.items():
        assert torch.equal(again[key], value), key
        if key.startswith("target"):
            assert torch.equal(first[key.replace("target", "online", 1)], value), key
        if value.ndim > 1:
            limit = 2 / math.sqrt(value[0].numel())
            assert value.abs().max() <= limit * (1 + 1e-6), key
            assert not torch.equal(other[key], value), key
            assert not torch.equal(usual[key], value), key
    assert not first["online.projector.0.bias"].any()
    assert usual["online.projector.0.bias"].any()


def test_weights_of_a_file_win() -> None:
    given = build_backbone("resnet18", seed=9).state_dict()
    found = built(weights=given).state_dict()
    assert all(torch.equal(found[f"online.backbone.{key}"], value) for key, value in given.items())


def test_a_vision_transformer_is_refused() -> None:
    with pytest.raises(ValueError, match="init: byol is that of ResNets; for vit_b_16"):
        ModelSettings(backbone="vit_b_16", init="byol")
