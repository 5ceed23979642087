"""Colour jitter of a whole batch on a GPU: few kernels, and no pixels gathered or scattered between operators.

Brightness, contrast and saturation are one operator: a pixel, its grey and the mean grey of its image, each times a
number of the image, clamped. Each image has up to three of them before its hue is turned, and the rest after that. With
images sorted by how many come before, those that have one more lie side by side.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # as torchvision
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
BLENDS = 3  # operators of an image beside the hue
SECTORS = (5.0, 3.0, 1.0)  # of red, green and blue, in sixths of a turn
NO_CHROMA = 1e-12  # below what changes a pixel


class Sorted(NamedTuple):
    """`order` (n,): which image comes at each place; `starts` (5,): the first place with so many blends before the hue.

    Images without jitter come last, from `starts[4]`.
    """

    order: np.ndarray
    starts: np.ndarray


def sorted_by_hue(order: np.ndarray, jitter: np.ndarray) -> Sorted:
    """Images by the place of the hue in their own order of operators.

    Args:
        order: (n, 4), which operator comes first to last.
        jitter: (n,), whether an image has any.
    """
    place = np.where(jitter, np.argmax(order == HUE, axis=1), BLENDS + 1)
    by_place = np.argsort(place, kind="stable")
    return Sorted(by_place, np.searchsorted(place[by_place], np.arange(BLENDS + 2)))


def jitter_together(pixels: Tensor, order: np.ndarray, factors: np.ndarray, starts: np.ndarray) -> Tensor:
    """Colour jitter of every image in its own order, in place; as the operators of train/data/augment.py.

    Args:
        pixels: float32 (n, 3, h, w) in [0, 1], contiguous, sorted by `sorted_by_hue`.
        order: (n, 4), sorted alike.
        factors: (n, 4) float32, of brightness, contrast and saturation, and the hue's shift in turns; sorted alike.
        starts: of `Sorted`.
    """
    jittered = int(starts[-1])
    if not jittered:
        return pixels
    before = [slice(int(starts[number + 1]), jittered) for number in range(BLENDS)]
    after = [slice(0, int(starts[BLENDS - number])) for number in range(BLENDS)]
    table = torch.from_numpy(_coefficients(order[:jittered], factors[:jittered], starts))
    numbers = table.to(pixels.device, non_blocking=True)
    for number, images in enumerate(before):
        _blend(pixels[images], numbers[images, number])
    _turn_hue(pixels[:jittered], numbers[:, -1].view(-1, 3, 1, 1))
    for number, images in enumerate(after):
        _blend(pixels[images], numbers[images, BLENDS + number])
    return pixels


def _coefficients(order: np.ndarray, factors: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(m, 7, 3) float32: those of three blends before the hue and three after it, and the sectors of the turned hue."""
    rows = np.arange(len(order))
    hue_at = np.searchsorted(starts[1:], rows, side="right")
    table = np.zeros((len(order), 2 * BLENDS + 1, 3), np.float32)
    for number in range(2 * BLENDS):
        place = number if number < BLENDS else np.minimum(hue_at + 1 + number - BLENDS, BLENDS)
        operation = order[rows, place]
        factor = factors[rows, operation]
        table[:, number, 0] = factor
        table[:, number, 1] = np.where(operation == SATURATION, 1 - factor, 0)
        table[:, number, 2] = np.where(operation == CONTRAST, 1 - factor, 0)
    table[:, -1] = np.array(SECTORS, np.float32) + 6 * factors[:, HUE, None]
    return table


def _blend(x: Tensor, numbers: Tensor) -> None:
    """own · x + of_grey · grey + of_mean · mean grey, clamped to [0, 1], in place; `numbers` (m, 3) are the three."""
    if not len(x):
        return
    own, of_grey, of_mean = numbers.view(-1, 3, 1, 1, 1).unbind(1)
    grey = x[:, :1] * GREY_WEIGHTS[0]
    grey.add_(x[:, 1:2], alpha=GREY_WEIGHTS[1]).add_(x[:, 2:], alpha=GREY_WEIGHTS[2])
    rest = torch.addcmul(grey.mean((2, 3), keepdim=True) * of_mean, grey, of_grey)
    torch.addcmul(rest, x, own, out=x).clamp_(0, 1)


def _turn_hue(x: Tensor, sectors: Tensor) -> None:
    """Turn the hue in HSV space, in place; `sectors` (m, 3, 1, 1) are those of each colour, turned."""
    red, green, blue = x.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - low
    is_red, is_green = value == red, value == green
    apart = torch.where(is_red, green - blue, torch.where(is_green, blue - red, red - green))
    begin = torch.where(is_red, 0.0, torch.where(is_green, 2.0, 4.0))
    hue = torch.addcdiv(begin, apart, chroma.clamp(min=NO_CHROMA))
    # A colour is value - chroma · min(s, 4 - s) clamped to [0, 1], and min(s, 4 - s) = 2 - |s - 2|.
    distance = (hue.unsqueeze(1) + sectors).remainder_(6).sub_(2).abs_().clamp_(1, 2)
    torch.addcmul((low - chroma).unsqueeze(1), chroma.unsqueeze(1), distance, out=x)
