"""Training crops for segmentation: scale, crop, flip, colour. Pure functions of a sample and a generator (A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.foundation.pictures import VOID
from train.config.evals import SegmentationSettings

MAX_DRAWS = 10  # of a crop window, until no class exceeds max_class_share (MMSegmentation)


class LabelledImage(NamedTuple):
    """RGB and class ids of one size, uint8; 255 is void."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w"]


class Window(NamedTuple):
    """A rectangle of an image that was scaled to `scaled_height` × `scaled_width`, in its pixels."""

    scaled_height: int
    scaled_width: int
    top: int
    left: int
    height: int
    width: int


class TrainingExample(NamedTuple):
    """Network input and targets."""

    image: Float32[Tensor, "3 s s"]
    labels: Int64[Tensor, "s s"]


def scaled_size(height: int, width: int, *, short_side: int | None, ratio: float = 1.0) -> tuple[int, int]:
    """Height and width when the shorter of them becomes `short_side` (None: stays) × `ratio`; at least 1 each."""
    factor = ratio * (short_side / min(height, width) if short_side else 1.0)
    return max(1, round(height * factor)), max(1, round(width * factor))


def draw_window(
    labels: UInt8[np.ndarray, "h w"], *, settings: SegmentationSettings, rng: np.random.Generator
) -> Window:
    """A random scale and a random crop of at most crop_size² in it, drawn again while one class takes too much."""
    ratio = rng.uniform(*settings.scale_range)
    height, width = scaled_size(*labels.shape, short_side=settings.short_side, ratio=ratio)
    crop_height, crop_width = min(height, settings.crop_size), min(width, settings.crop_size)
    for _ in range(MAX_DRAWS):
        top, left = int(rng.integers(height - crop_height + 1)), int(rng.integers(width - crop_width + 1))
        window = Window(height, width, top, left, crop_height, crop_width)
        limit = settings.max_class_share
        if limit == 1 or largest_class_share(crop_labels(labels, window)) < limit:
            break
    return window


def largest_class_share(labels: UInt8[np.ndarray, "h w"]) -> float:
    """Share of the most frequent class among the labelled pixels; 1 where all are void."""
    counts = np.bincount(labels[labels != VOID], minlength=1)
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


def crop_image(image: UInt8[np.ndarray, "h w 3"], window: Window) -> UInt8[np.ndarray, "ch cw 3"]:
    """The window of the bilinearly scaled image (antialiased), without scaling what is outside of it."""
    height, width = image.shape[:2]
    y, x = height / window.scaled_height, width / window.scaled_width
    right, lower = min((window.left + window.width) * x, width), min((window.top + window.height) * y, height)
    box = (window.left * x, window.top * y, right, lower)
    resized = Image.fromarray(image).resize((window.width, window.height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(resized)


def crop_labels(labels: UInt8[np.ndarray, "h w"], window: Window) -> UInt8[np.ndarray, "ch cw"]:
    """The window of the labels scaled by nearest neighbour; ids are copied, never mixed."""
    height, width = labels.shape
    rows = (2 * (window.top + np.arange(window.height)) + 1) * height // (2 * window.scaled_height)
    columns = (2 * (window.left + np.arange(window.width)) + 1) * width // (2 * window.scaled_width)
    cropped: np.ndarray = labels[rows[:, None], columns[None, :]]
    return cropped


def random_crop(sample: LabelledImage, *, settings: SegmentationSettings, rng: np.random.Generator) -> LabelledImage:
    """A scaled, cropped and maybe mirrored part of a sample; image and labels share one window."""
    window = draw_window(sample.labels, settings=settings, rng=rng)
    image, labels = crop_image(sample.image, window), crop_labels(sample.labels, window)
    if rng.random() < settings.flip_probability:
        image, labels = image[:, ::-1], labels[:, ::-1]
    return LabelledImage(image, labels)


def distort_colours(image: UInt8[np.ndarray, "h w 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w 3"]:
    """Brightness ± 32 of 255, contrast × 0.5 … 1.5 (first or last), saturation × 0.5 … 1.5, hue ± 36°; each at p = 0.5.

    The ranges and the order are those of MMSegmentation's PhotoMetricDistortion (after SSD).
    """
    contrast_first = rng.random() < 0.5
    image = _linear(image, offset=rng.uniform(-32, 32) * _coin(rng))
    contrast = 1 + rng.uniform(-0.5, 0.5) * _coin(rng)
    if contrast_first:
        image = _linear(image, gain=contrast)
    saturation, hue_degrees = 1 + rng.uniform(-0.5, 0.5) * _coin(rng), rng.uniform(-36, 36) * _coin(rng)
    image = _shift_hsv(image, saturation=saturation, hue_degrees=hue_degrees)
    return image if contrast_first else _linear(image, gain=contrast)


def to_example(sample: LabelledImage, *, mean: Sequence[float], std: Sequence[float], size: int) -> TrainingExample:
    """Normalise a sample of at most size² and pad it on the right and below: with 0 (the mean colour) and void."""
    image = normalised(sample.image, mean=mean, std=std)
    labels = torch.from_numpy(sample.labels.astype(np.int64))
    height, width = labels.shape
    padding = (0, size - width, 0, size - height)
    return TrainingExample(F.pad(image, padding), F.pad(labels, padding, value=VOID))


def normalised(
    image: UInt8[np.ndarray, "h w 3"], *, mean: Sequence[float], std: Sequence[float]
) -> Float32[Tensor, "3 h w"]:
    """(RGB / 255 − mean) / std."""
    scaled = (image / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def _coin(rng: np.random.Generator) -> int:
    return int(rng.random() < 0.5)


def _linear(image: np.ndarray, *, gain: float = 1.0, offset: float = 0.0) -> np.ndarray:
    changed: np.ndarray = np.clip(image * np.float32(gain) + np.float32(offset), 0, 255).astype(np.uint8)
    return changed


def _shift_hsv(image: np.ndarray, *, saturation: float, hue_degrees: float) -> np.ndarray:
    if saturation == 1 and hue_degrees == 0:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(round(hue_degrees * 256 / 360) % 256)  # uint8 wraps, as hue does
    hsv[..., 1] = np.clip(hsv[..., 1] * np.float32(saturation), 0, 255)
    return np.asarray(Image.fromarray(hsv, mode="HSV").convert("RGB"))
