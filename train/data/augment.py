"""BYOL's pixel augmentations (A.1), batched on the device: every view has parameters of its own.

Parameters are drawn on the CPU from the sample's own generator, so that they depend on neither rank nor device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from train.config import AugmentSettings
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # as torchvision
Operator = Callable[[Tensor, Tensor], Tensor]  # (pixels, parameter per image) → pixels
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


class AugmentParams(NamedTuple):
    """Drawn parameters; the leading axes are the views (V,) of a sample, later (B, V) of a batch.

    factors (…, 4): brightness, contrast, saturation (1 = identity), hue shift in turns; order (…, 4): which
    of them comes first to last; jitter, grayscale, solarize (…,): applied or not; blur_sigma (…,): pixels, 0 = none.
    """

    factors: np.ndarray
    order: np.ndarray
    jitter: np.ndarray
    grayscale: np.ndarray
    blur_sigma: np.ndarray
    solarize: np.ndarray


def draw_params(rng: np.random.Generator, settings: AugmentSettings) -> AugmentParams:
    """Parameters of the two views of one sample."""
    strength = np.array([settings.brightness, settings.contrast, settings.saturation, settings.hue])
    centre = np.array([1.0, 1.0, 1.0, 0.0])
    low = np.where(centre == 1, np.maximum(centre - strength, 0), -strength)
    sigma = rng.uniform(*settings.blur_sigma, 2)
    return AugmentParams(
        factors=rng.uniform(low, centre + strength, (2, 4)).astype(np.float32),
        order=rng.permuted(np.tile(np.arange(4), (2, 1)), axis=1),
        jitter=rng.random(2) < settings.jitter_probability,
        grayscale=rng.random(2) < settings.grayscale_probability,
        blur_sigma=np.where(rng.random(2) < settings.blur_probability, sigma, 0).astype(np.float32),
        solarize=rng.random(2) < settings.solarize_probability,
    )


def normalize(pixels: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """ImageNet normalisation, of uint8 or of floats in [0, 1]."""
    scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=pixels.device).view(3, 1, 1)
    return (scaled - mean) / std


def augment_views(
    views: UInt8[Tensor, "n 3 h w"], params: AugmentParams, settings: AugmentSettings
) -> Float[Tensor, "n 3 h w"]:
    """Colour jitter in each view's own order, grey, blur, solarize, normalise.

    Args:
        params: leading axes flattened to (n,).
    """
    pixels = views.float() / 255
    for position in range(4):
        for operation in range(4):
            index = np.flatnonzero(params.jitter & (params.order[:, position] == operation))
            _apply(_JITTERS[operation], pixels, index, params.factors[:, operation])
    _apply(lambda x, _: _grey(x).expand_as(x), pixels, np.flatnonzero(params.grayscale), params.blur_sigma)
    _apply(
        lambda x, sigma: gaussian_blur(x, sigma.flatten(), settings.blur_kernel_size),
        pixels,
        np.flatnonzero(params.blur_sigma > 0),
        params.blur_sigma,
    )
    threshold = settings.solarize_threshold / 255
    _apply(lambda x, _: torch.where(x >= threshold, 1 - x, x), pixels, np.flatnonzero(params.solarize), params.factors)
    return normalize(pixels)


def _apply(
    operator: Callable[[Tensor, Tensor], Tensor], pixels: Tensor, index: np.ndarray, parameter: np.ndarray
) -> None:
    """Replace pixels[index] by operator(pixels[index], parameter[index] as (len, 1, 1, 1)), in place."""
    if len(index):
        where = torch.from_numpy(index).to(pixels.device, non_blocking=True)
        values = torch.from_numpy(parameter[index]).to(pixels.device, non_blocking=True)
        pixels[where] = operator(pixels[where], values.view(len(index), -1, 1, 1))


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue).unsqueeze(1)


def adjust_brightness(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with black; values in [0, 1]. As torchvision's, with a factor per image."""
    return (x * factor).clamp(0, 1)


def adjust_contrast(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with the mean grey of the image."""
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean.expand_as(x), x, factor.expand_as(x)).clamp(0, 1)


def adjust_saturation(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 h w"]:
    """Blend with the grey image."""
    return torch.lerp(_grey(x).expand_as(x), x, factor.expand_as(x)).clamp(0, 1)


def adjust_hue(x: Float[Tensor, "n 3 h w"], shift: Float[Tensor, "n 1 1 1"]) -> Float[Tensor, "n 3 h w"]:
    """Turn the hue by `shift` (in turns) in HSV space."""
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = hue + 6 * shift.squeeze(1)
    sector = torch.stack([turned + 5, turned + 3, turned + 1], 1).remainder(6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(sector, 4 - sector).clamp(0, 1)


_JITTERS: dict[int, Operator] = {
    BRIGHTNESS: adjust_brightness,
    CONTRAST: adjust_contrast,
    SATURATION: adjust_saturation,
    HUE: adjust_hue,
}


def gaussian_blur(
    x: Float[Tensor, "n 3 h w"], sigma: Float[Tensor, " n"], kernel_size: int
) -> Float[Tensor, "n 3 h w"]:
    """Blur with a kernel per image, borders reflected, as two matrix products with banded matrices."""
    rows = _blur_matrix(sigma, kernel_size, x.shape[2])
    columns = rows if x.shape[2] == x.shape[3] else _blur_matrix(sigma, kernel_size, x.shape[3])
    return rows.unsqueeze(1) @ x @ columns.unsqueeze(1).transpose(2, 3)


def _blur_matrix(sigma: Tensor, kernel_size: int, size: int) -> Tensor:
    """(n, size, size): row i holds the weights with which pixel i takes the others."""
    radius = kernel_size // 2
    if radius >= size:
        raise ValueError(f"blur_kernel_size {kernel_size} needs views larger than {radius} pixels, not {size}")
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    kernel = torch.softmax(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2, dim=1)
    taps = torch.arange(size, device=sigma.device).unsqueeze(1) + offsets
    taps = size - 1 - (size - 1 - taps.abs()).abs()
    matrix = sigma.new_zeros(len(sigma), size, size)
    index = taps.expand(len(sigma), -1, -1)
    return matrix.scatter_add_(2, index, kernel.unsqueeze(1).expand(-1, size, -1))
