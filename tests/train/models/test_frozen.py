"""Frozen features: those of the source's own model, and batch norm's statistics against a loop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from pipeline.foundation.errors import InputError
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, ResNetBackbone, build_backbone
from train.models.frozen import FrozenModel, random_model, set_batch_norm_statistics
from train.models.plain_vit import resized_embedding
from train.models.weights.load import load_backbone

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=GENERATOR)


def normalised(images: Tensor) -> Tensor:
    """By torchvision's own functions."""
    return torchvision.transforms.functional.normalize(images.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))


def with_statistics(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) * 0.1 + ("var" in name) * 0.9)
    return model.eval()


def frozen_of(model: nn.Module, path: Path, **kwargs: Any) -> FrozenModel:
    torch.save(model.state_dict(), path)
    loaded = load_backbone(path)
    assert loaded.loaded == 1.0
    return FrozenModel(loaded.build(**kwargs), mean=loaded.mean, std=loaded.std)


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_of_timm_and_torchvision_give_their_own_features(name: str, tmp_path: Path) -> None:
    for theirs in (timm.create_model(name, pretrained=False), torchvision.models.get_model(name)):
        with_statistics(theirs)
        features = frozen_of(theirs, tmp_path / "w.pth")(IMAGES)
        theirs.fc = nn.Identity()
        with torch.no_grad():
            pooled = theirs(normalised(IMAGES))
        torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
        assert (features.c4.shape[2:], features.c5.shape[2:]) == ((14, 14), (7, 7))


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), [("vit_small_patch16_224", 224), ("vit_base_patch16_224", 96)])
def test_vits_of_timm_give_their_own_tokens_at_any_size(name: str, size: int, tmp_path: Path) -> None:
    theirs = timm.create_model(name, pretrained=False, dynamic_img_size=True).eval()
    nn.init.normal_(theirs.cls_token)
    features = frozen_of(theirs, tmp_path / "w.pth")(IMAGES[:1, :, :size, :size])
    with torch.no_grad():
        tokens = theirs.forward_features(normalised(IMAGES[:1, :, :size, :size]))
    torch.testing.assert_close(features.pooled, tokens[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(features.c4.flatten(2).transpose(1, 2), tokens[:, 1:], atol=1e-5, rtol=1e-4)
    assert torch.equal(features.c4, features.c5)
    assert features.c5.shape[2:] == (size // 16, size // 16)


@pytest.mark.long
def test_a_vit_of_torchvision_gives_its_own_class_token(tmp_path: Path) -> None:
    theirs = torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536).eval()
    features = frozen_of(theirs, tmp_path / "w.pth")(IMAGES[:1])
    theirs.heads = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(features.pooled, theirs(normalised(IMAGES[:1])), atol=1e-5, rtol=1e-4)


@pytest.mark.long
def test_moco_v3s_small_vit_has_twelve_heads(tmp_path: Path) -> None:
    """By timm's own transformer of 12 heads; with 6, as the usual ViT-S has, the outputs differ."""
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False, num_heads=12, num_classes=0).eval()
    torch.save({"state_dict": {f"module.base_encoder.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "w")
    loaded = load_backbone(tmp_path / "w")
    model = FrozenModel(loaded.build(), mean=loaded.mean, std=loaded.std)
    with torch.no_grad():
        tokens = theirs.forward_features(normalised(IMAGES[:1]))
    assert (loaded.format, loaded.form.heads) == ("mocov3", 12)
    torch.testing.assert_close(model(IMAGES[:1]).pooled, tokens[:, 0], atol=1e-5, rtol=1e-4)


def test_position_embeddings_are_resized_as_timm_does() -> None:
    embedding = torch.randn(1, 1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    for grid in ((7, 7), (28, 28), (10, 21)):
        theirs = timm.layers.resample_abs_pos_embed(embedding, list(grid), num_prefix_tokens=1)
        torch.testing.assert_close(resized_embedding(embedding, grid), theirs)
    assert resized_embedding(embedding, (14, 14)) is embedding


@pytest.mark.long
def test_r2os_own_vit_gives_its_own_layers() -> None:
    backbone = build_backbone("vit_s_16", seed=0, image_size=64).eval()
    model = FrozenModel(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    features = model(IMAGES[:, :, :64, :64])
    with torch.no_grad():
        expected = backbone(normalised(IMAGES[:, :, :64, :64]))
    torch.testing.assert_close(features.c4, expected.c4)
    torch.testing.assert_close(features.c5, expected.c5)
    assert features.pooled.shape == (2, 384)
    assert model(IMAGES[:, :, :96, :96]).c5.shape == (2, 384, 3, 3)


def test_it_stays_frozen_whatever_is_called() -> None:
    model = random_model("resnet18", seed=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = model.train()(IMAGES)
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert not features.c5.requires_grad
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(features.pooled, features.c5.mean((2, 3)))


def test_random_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = (random_model("resnet18", seed=seed).backbone.conv1.weight for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, build_backbone("resnet18", seed=1).conv1.weight)
    assert random_model("resnet18", seed=0, dilate_c5=True)(IMAGES).c5.shape[2:] == (14, 14)
    with pytest.raises(InputError, match="no backbone 'resnet17'"):
        random_model("resnet17", seed=0)


class OneNorm(nn.Module):
    """A batch norm of pixels, as C5."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.norm(x)


def test_batch_norms_statistics_are_those_of_all_pixels() -> None:
    images = torch.randint(0, 256, (150, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    model = FrozenModel(OneNorm(), mean=(0.0, 0.1, 0.2), std=(1.0, 0.5, 0.25))
    assert set_batch_norm_statistics(model, images.split(7)) == 150
    mean, std = np.array([[[0.0]], [[0.1]], [[0.2]]]), np.array([[[1.0]], [[0.5]], [[0.25]]])
    pixels = (images.double().numpy() / 255 - mean) / std
    norm = model.backbone.norm
    assert norm.running_mean.numpy() == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-6)
    assert norm.running_var.numpy() == pytest.approx(pixels.var((0, 2, 3), ddof=1), rel=1e-6)
    normed = model(images).c5.double().numpy()
    assert normed.mean((0, 2, 3)) == pytest.approx(0, abs=1e-5)
    assert normed.var((0, 2, 3)) == pytest.approx(1, rel=1e-3)


@pytest.mark.long
@pytest.mark.usefixtures("shallow")
def test_statistics_do_not_depend_on_the_split_and_weights_stay() -> None:
    images = torch.randint(0, 256, (140, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    found = []
    for size in (140, 64, 9):
        model = random_model("resnet18", seed=0)
        weights = {key: value.clone() for key, value in model.named_parameters()}
        set_batch_norm_statistics(model, iter(images.split(size)))
        assert all(torch.equal(value, weights[key]) for key, value in model.named_parameters())
        assert not any(module.training for module in model.modules())
        found.append({key: value.clone() for key, value in model.named_buffers()})
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())
    assert not torch.equal(found[0]["backbone.bn1.running_var"], torch.ones(64))
    assert int(found[0]["backbone.bn1.num_batches_tracked"]) == 2  # groups of 64 and 76


def test_one_group_is_normalised_as_in_training() -> None:
    """Up to 127 images are one group: eval mode then gives what train mode gave, but for the unbiased variance."""
    images = torch.randint(0, 256, (100, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    model = random_model("resnet18", seed=0)
    trained = ResNetBackbone("resnet18")
    trained.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        expected = trained.train()(normalised(images)).c4
    set_batch_norm_statistics(model, [images])
    torch.testing.assert_close(model(images).c4, expected, atol=0.02, rtol=0.02)


def test_nothing_to_measure() -> None:
    def never() -> Iterator[Tensor]:
        raise AssertionError
        yield

    vit = FrozenModel(nn.Identity(), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert set_batch_norm_statistics(vit, never()) == 0
    with pytest.raises(InputError, match="no image"):
        set_batch_norm_statistics(random_model("resnet18", seed=0), [])
