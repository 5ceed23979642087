"""The usual input pipeline, written from the paper's description with the usual parts: what `bench-stream` compares to.

Pillow decodes, torchvision's transforms work on Pillow's images, scikit-image makes the superpixels of each sample.
One process, one core.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

SIZE = 224
SEGMENTS = 100
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ReferenceSample(NamedTuple):
    """What the trainer needs of an image; floats normalised, superpixels absent where they are not asked for."""

    image: Tensor
    superpixels: Tensor | None
    views: Tensor


def _blurred(image: Image.Image) -> Image.Image:
    """As MoCo v2's code and its many descendants do it: Pillow's, five times as fast as torchvision's 23 × 23."""
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _view(blur_probability: float, solarize_probability: float) -> v2.Compose:
    """A.1 of the paper: BYOL's augmentations."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.Lambda(_blurred)], p=blur_probability),
            v2.RandomSolarize(threshold=128, p=solarize_probability),
            *_NORMALIZED,
        ]
    )


_NORMALIZED = (
    v2.PILToTensor(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
)
_WHOLE = v2.Resize((SIZE, SIZE), interpolation=InterpolationMode.BICUBIC)
_TENSOR = v2.Compose(_NORMALIZED)
VIEWS = (_view(1.0, 0.0), _view(0.1, 0.2))


def reference_sample(jpeg: bytes, *, superpixels: bool) -> ReferenceSample:
    """One sample: decode, resize the whole image, superpixels where asked for, two views."""
    from skimage.segmentation import slic

    with Image.open(io.BytesIO(jpeg)) as opened:
        pixels = opened.convert("RGB")
    whole = _WHOLE(pixels)
    label_map = None
    if superpixels:
        label_map = torch.from_numpy(slic(np.asarray(whole), n_segments=SEGMENTS, start_label=0))
    return ReferenceSample(_TENSOR(whole), label_map, torch.stack([view(pixels) for view in VIEWS]))


def reference_batch(jpegs: Sequence[bytes], *, superpixels: bool) -> ReferenceSample:
    """Samples stacked to a batch."""
    samples = [reference_sample(jpeg, superpixels=superpixels) for jpeg in jpegs]
    maps = torch.stack([s.superpixels for s in samples if s.superpixels is not None]) if superpixels else None
    return ReferenceSample(torch.stack([s.image for s in samples]), maps, torch.stack([s.views for s in samples]))
