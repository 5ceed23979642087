"""What an evaluation begins with: weights of the run, random ones, random ones that batch norm was measured for."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, build_backbone
from train.models.backbone_file import ExportedBackbone
from train.models.initial import InitName, initial_backbone

IMAGES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def begun(init: InitName, images: Iterable[Tensor] = ()) -> Backbone:
    state = build_backbone("resnet18", seed=5).state_dict()
    exported = ExportedBackbone(
        name="resnet18", mean=IMAGENET_MEAN, std=IMAGENET_STD, fingerprint="f", state_dict=state
    )
    return initial_backbone(
        init, exported=exported, seed=7, dilate_c5=True, images=lambda: images, device=torch.device("cpu")
    )


def by_pytorch(images: Tensor) -> nn.Module:
    """The oracle: PyTorch's own running statistics, averaged over one batch of all images."""
    model = build_backbone("resnet18", seed=7, dilate_c5=True).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        model((images / 255 - mean) / std)
    return model


def test_each_init_has_its_weights(shallow: None) -> None:
    trained = build_backbone("resnet18", seed=5).state_dict()
    torch.testing.assert_close(begun("run").state_dict(), trained, rtol=0, atol=0)
    random = build_backbone("resnet18", seed=7).state_dict()
    torch.testing.assert_close(begun("random").state_dict(), random, rtol=0, atol=0)


@pytest.mark.parametrize("batches", [[6], [1, 1, 1, 1, 1, 1], [4, 2]])
def test_random_bn_is_random_with_the_statistics_of_the_images(shallow: None, batches: list[int]) -> None:
    model, expected = begun("random-bn", IMAGES.split(batches)), by_pytorch(IMAGES).state_dict()
    found = model.state_dict()
    for name, value in build_backbone("resnet18", seed=7).named_parameters():
        assert torch.equal(found[name], value), name
    running = [name for name in found if "running" in name]
    assert len(running) > 8
    for name in running:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
