"""BYOL's pixel augmentations (A.1), batched on the device: every view has parameters of its own.

Parameters are drawn on the CPU from the sample's own generator, so that they depend on neither rank nor device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from train.config.data import AugmentSettings
from train.data.jitter import (
    BRIGHTNESS,
    CONTRAST,
    GREY_WEIGHTS,
    HUE,
    SATURATION,
    jitter_together,
    sorted_by_hue,
)
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD

NO_WEIGHT = 1e-8  # of the centre's: below what float32 shows
Operator = Callable[[Tensor, Tensor], Tensor]  # (pixels, parameter per image) → pixels
IN_ORDER = np.tile(np.arange(4), (2, 1))


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
        order=rng.permuted(IN_ORDER, axis=1),
        jitter=rng.random(2) < settings.jitter_probability,
        grayscale=rng.random(2) < settings.grayscale_probability,
        blur_sigma=np.where(rng.random(2) < settings.blur_probability, sigma, 0).astype(np.float32),
        solarize=rng.random(2) < settings.solarize_probability,
    )


def normalize(
    pixels: UInt8[Tensor, "n 3 h w"] | Float[Tensor, "n 3 h w"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n 3 h w"]:
    """ImageNet normalisation, of uint8 or of floats in [0, 1]; computed in float32, rounded to `dtype` at the end."""
    scale, shift = _normalization(pixels.device, 255.0 if pixels.dtype == torch.uint8 else 1.0)
    return torch.addcmul(shift, pixels.float(), scale).to(dtype)


@lru_cache(maxsize=16)
def _normalization(device: torch.device, full: float) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (3, 1, 1): x · scale + shift = (x / full - mean) / std."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (1 / (full * std)).float().to(device), (-mean / std).float().to(device)


def augment_views(
    views: UInt8[Tensor, "n 3 h w"],
    params: AugmentParams,
    settings: AugmentSettings,
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "n 3 h w"]:
    """Colour jitter in each view's own order, grey, blur, solarize, normalise.

    Computed in float32, rounded to `dtype` at the end. A CPU takes view by view, so that a view stays in its cache; a
    GPU takes the batch, and is waited for nowhere.

    Args:
        params: leading axes flattened to (n,).
    """
    if views.device.type != "cpu":
        return _augmented_together(views, params, settings, dtype)
    out = torch.empty(views.shape, dtype=dtype)
    for number in range(len(views)):
        one = slice(number, number + 1)
        out[one] = normalize(_augmented(views[one], AugmentParams(*(f[one] for f in params)), settings), dtype)
    return out


def augment_on_host(
    views: UInt8[Tensor, "n 3 h w"], params: AugmentParams, settings: AugmentSettings
) -> UInt8[Tensor, "n 3 h w"]:
    """The same but for the normalisation, rounded to uint8 again, as Pillow's transforms leave pixels."""
    out = torch.empty(views.shape, dtype=torch.uint8, memory_format=torch.channels_last)
    for number in range(len(views)):
        one = slice(number, number + 1)
        pixels = _augmented(views[one], AugmentParams(*(f[one] for f in params)), settings)
        out[one] = pixels.mul_(255).round_().to(torch.uint8)
    return out


def _augmented(views: Tensor, params: AugmentParams, settings: AugmentSettings) -> Tensor:
    """Floats in [0, 1], (n, 3, h, w), contiguous."""
    pixels = views.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    for position in range(4):
        for operation in range(4):
            index = np.flatnonzero(params.jitter & (params.order[:, position] == operation))
            pixels = _apply(_JITTERS[operation], pixels, index, params.factors[:, operation])
    return _grey_blurred_solarized(pixels, params, settings)


def _augmented_together(views: Tensor, params: AugmentParams, settings: AugmentSettings, dtype: torch.dtype) -> Tensor:
    """As `_augmented`, normalised, for a batch on a GPU: sorted so that the jitter gathers nothing, and back."""
    order, starts = sorted_by_hue(params.order, params.jitter)
    there, back = torch.from_numpy(np.stack([order, np.argsort(order)])).to(views.device, non_blocking=True)
    params = AugmentParams(*(field[order] for field in params))
    pixels = jitter_together(views.index_select(0, there) / 255, params.order, params.factors, starts)
    return normalize(_grey_blurred_solarized(pixels, params, settings), dtype).index_select(0, back)


def _grey_blurred_solarized(pixels: Tensor, params: AugmentParams, settings: AugmentSettings) -> Tensor:
    """What comes after the jitter, (n, 3, h, w), contiguous; `pixels` may be overwritten."""
    pixels = _apply(lambda x, _: _grey(x).expand_as(x), pixels, np.flatnonzero(params.grayscale), params.blur_sigma)
    pixels = _apply(
        lambda x, sigma: gaussian_blur(x, sigma.flatten(), settings.blur_kernel_size),
        pixels,
        np.flatnonzero(params.blur_sigma > 0),
        params.blur_sigma,
    )
    threshold = settings.solarize_threshold / 255
    return _apply(
        lambda x, _: torch.where(x >= threshold, 1 - x, x),
        pixels,
        np.flatnonzero(params.solarize),
        params.factors[:, 0],
    ).contiguous()


def _apply(operator: Operator, pixels: Tensor, index: np.ndarray, parameter: np.ndarray) -> Tensor:
    """`pixels` with pixels[index] replaced by operator(pixels[index], parameter[index] as (len, 1, 1, 1))."""
    if not len(index):
        return pixels
    values = torch.from_numpy(parameter[index]).view(-1, 1, 1, 1).to(pixels.device, non_blocking=True)
    if len(index) == len(pixels):
        return operator(pixels, values)
    where = torch.from_numpy(index).to(pixels.device, non_blocking=True)
    return pixels.index_copy_(0, where, operator(pixels[where], values))


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
    """Blur with a kernel per image, borders reflected.

    A batch takes two matrix products with banded matrices; a single image on a CPU the sum of its shifted copies, which
    is three times as fast there and leaves out weights below 1e-8.
    """
    radius = kernel_size // 2
    if radius >= min(x.shape[2:]):
        raise ValueError(
            f"blur_kernel_size {kernel_size} needs views larger than {radius} pixels, not {min(x.shape[2:])}"
        )
    if len(x) == 1 and x.device.type == "cpu":
        weights = _kernel(sigma, radius)[0, radius:].tolist()
        weights = [w for w in weights if w > NO_WEIGHT * weights[0]]
        return _shifted_sum(_shifted_sum(x, weights, dim=3), weights, dim=2)
    rows = _blur_matrix(sigma, radius, x.shape[2])
    columns = rows if x.shape[2] == x.shape[3] else _blur_matrix(sigma, radius, x.shape[3])
    return rows.unsqueeze(1) @ x @ columns.unsqueeze(1).transpose(2, 3)


def _kernel(sigma: Tensor, radius: int) -> Tensor:
    """(n, 2 · radius + 1): the weights of the offsets -radius … radius, of sum 1."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    return torch.softmax(-0.5 * (offsets / sigma.unsqueeze(1)) ** 2, dim=1)


def _shifted_sum(x: Tensor, weights: Sequence[float], *, dim: int) -> Tensor:
    """Convolution along `dim` with the symmetric kernel of which `weights` are the centre and one half."""
    radius, size = len(weights) - 1, x.shape[dim]
    total = x * weights[0]
    if radius == 0:
        return total
    padded = F.pad(x, (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius), mode="reflect")
    for offset, weight in enumerate(weights[1:], start=1):
        total.add_(padded.narrow(dim, radius - offset, size), alpha=weight)
        total.add_(padded.narrow(dim, radius + offset, size), alpha=weight)
    return total


def _blur_matrix(sigma: Tensor, radius: int, size: int) -> Tensor:
    """(n, size, size): row i holds the weights with which pixel i takes the others."""
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.arange(size, device=sigma.device).unsqueeze(1) + offsets
    taps = size - 1 - (size - 1 - taps.abs()).abs()
    matrix = sigma.new_zeros(len(sigma), size, size)
    index = taps.expand(len(sigma), -1, -1)
    return matrix.scatter_add_(2, index, _kernel(sigma, radius).unsqueeze(1).expand(-1, size, -1))
