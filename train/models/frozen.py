"""A backbone whose features are read and never trained: pixels in, C4, C5 and one vector out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.foundation.errors import InputError
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, ViTBackbone
from train.models.plain_vit import is_vit, vit_tokens
from train.models.weights.form import BACKBONES, form_named

GROUP = 64  # images that are normalised together while batch norm's statistics are measured


class FrozenFeatures(NamedTuple):
    """Feature maps, and one vector an image: the mean of C5, or a ViT's class token where it has one."""

    c4: Float[Tensor, "b c4 h4 w4"]
    c5: Float[Tensor, "b c5 h5 w5"]
    pooled: Float[Tensor, "b d"]


class FrozenModel(nn.Module):
    """Normalises as the weights were trained, then gives features; in eval mode, without gradients.

    Args:
        backbone: gives `Features`; a ResNet, or a Vision Transformer with or without layers of C4 and C5. It is frozen
            in place: of one that is being trained, give a copy.
        mean, std: three numbers each, of RGB in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked for: it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> FrozenFeatures:
        """Features of whole images, uint8 RGB, of any size that the backbone takes.

        A ResNet's `pooled` is the mean of C5. A ViT's is its class token after the final norm, and where it has no
        layers of C4 and C5, both are the grid of its patch tokens.
        """
        x = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        if not is_vit(self.backbone):
            c4, c5 = self.backbone(x)
            return FrozenFeatures(c4, c5, c5.mean((2, 3)))
        class_token, grid = vit_tokens(self.backbone, x)
        if not isinstance(self.backbone, ViTBackbone):
            return FrozenFeatures(grid, grid, class_token)
        c4 = self.backbone.c4_layer(grid)
        return FrozenFeatures(c4, self.backbone.c5_layer(c4), class_token)


def random_model(name: str, *, seed: int, dilate_c5: bool = False, own_layers: bool = False) -> FrozenModel:
    """A backbone as it is built, with random weights that depend on `seed` alone; ImageNet's normalisation.

    Args:
        name: as `LoadedBackbone.name`: resnet18 … resnet152, vit_s_16, vit_b_16, vit_l_16.
        own_layers: of a ViT, with R2O's layers of C4 and C5, as `LoadedBackbone.own_layers` says.
    Raises:
        InputError: no such backbone, or `dilate_c5` of a ViT.
    """
    if name not in BACKBONES:
        raise InputError(f"no backbone {name!r}; there are {', '.join(BACKBONES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = form_named(name, own_layers=own_layers).build(dilate_c5=dilate_c5)
    return FrozenModel(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def set_batch_norm_statistics(model: FrozenModel, batches: Iterable[UInt8[Tensor, "b 3 h w"]]) -> int:
    """Make batch norm's running mean and variance those of the data; weights stay.

    As built, they are 0 and 1, and features of random weights keep the image's brightness and colour.

    One pass. Images are regrouped, in their order, into groups of 64 (the last has 64 to 127, or all there are), so
    that the result does not depend on how the caller splits them. Inside a group each layer normalises by the group's
    own statistics, as in training. Mean and variance are those of all values of all groups together, summed in float64:
    each image counts the same. The variance is the unbiased one, as PyTorch's.

    Args:
        batches: uint8 RGB of one size, on the model's device; at least one image.
    Returns:
        the number of images; 0 where the model has no batch norm, and then nothing is read.
    Raises:
        InputError: there is no image.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return 0
    sums = {norm: _Sums() for norm in norms}
    hooks = [norm.register_forward_pre_hook(lambda norm, args: sums[norm].add(args[0])) for norm in norms]
    count = 0
    try:
        for norm in norms:
            norm.train()
        for group in _regrouped(batches):
            count += len(group)
            model(group)
    finally:
        for hook in hooks:
            hook.remove()
        model.eval()
    if not count:
        raise InputError("no image to measure batch norm's statistics on; give a list with images")
    for norm in norms:
        sums[norm].write_to(norm)
    return count


class _Sums:
    """Number, sum and sum of squares of the values of each channel."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Float[Tensor, "b c h w"]) -> None:
        x = x.detach().double()
        self.count += x.numel() // x.shape[1]
        self.total = self.total + x.sum((0, 2, 3))
        self.squares = self.squares + x.square().sum((0, 2, 3))

    def write_to(self, norm: _BatchNorm) -> None:
        assert isinstance(self.total, Tensor)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp_min(0) * self.count / max(self.count - 1, 1)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


def _regrouped(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same images in groups of `GROUP`, the last of up to 2·`GROUP` − 1."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.extend(batch)
        while len(waiting) >= 2 * GROUP:
            yield torch.stack(waiting[:GROUP])
            del waiting[:GROUP]
    if waiting:
        yield torch.stack(waiting)
