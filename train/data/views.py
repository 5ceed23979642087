"""Two views of an image and the label map that goes with them: crop boxes, the joint crop, and one sample's arrays."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.sample import (
    IMAGE_MEMBER,
    META_MEMBER,
    SUPERPIXELS_MEMBER,
    SampleMeta,
    decode_jpeg,
    decode_label_map,
)
from train.config import AugmentSettings, DataSettings
from train.data.augment import AugmentParams, draw_params

CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it falls back to the centre


class PixelBox(NamedTuple):
    """A crop in pixels of the decoded image; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class Sample(NamedTuple):
    """What the trainer gets of one image. Pixels are uint8; V is 2.

    image (3, H, W); superpixels (S, S) uint8, or int32 where ids pass 255; views (V, 3, h, w), mirrored where
    `flipped` (V,) bool; crop_box (V, 4) float32, xyxy in [0, 1] of the whole image; augment: parameters per view.
    """

    sample_id: int
    image: np.ndarray
    superpixels: np.ndarray
    views: np.ndarray
    crop_box: np.ndarray
    flipped: np.ndarray
    augment: AugmentParams


def random_crop_box(
    rng: np.random.Generator, *, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> PixelBox:
    """RandomResizedCrop's box: area uniform in `scale`, aspect log-uniform in `ratio`, whole pixels (A.1, BYOL)."""
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return PixelBox(left, top, left + w, top + h)
    w = min(width, round(height * ratio[1]))
    h = min(height, round(w / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return PixelBox(left, top, left + w, top + h)


def crop_label_map(
    label_map: np.ndarray, crop_box: tuple[float, float, float, float], *, flipped: bool, size: tuple[int, int]
) -> np.ndarray:
    """The label map (H, W) as a view of (high, wide) pixels sees it: ids gathered at the view's pixel centres."""
    left, top, right, bottom = crop_box
    columns = left + (np.arange(size[1]) + 0.5) / size[1] * (right - left)
    rows = top + (np.arange(size[0]) + 0.5) / size[0] * (bottom - top)
    x = np.clip((columns * label_map.shape[1]).astype(int), 0, label_map.shape[1] - 1)
    y = np.clip((rows * label_map.shape[0]).astype(int), 0, label_map.shape[0] - 1)
    return label_map[y[:, None], (x[::-1] if flipped else x)[None, :]]


def sample_rng(*, seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch; no rank or worker enters."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, sample_id])))


def make_sample(
    raw: dict[str, Any], *, seed: int, data: DataSettings, augment: AugmentSettings, max_superpixels: int
) -> Sample:
    """Decode once, resize the whole image, cut two views.

    Args:
        raw: `__key__`, `sample_id`, `epoch` and `members`, from `stream.RawStream`.
    Raises:
        InputError: a member is missing or damaged, or the label map has ids that the manifest rules out.
    """
    pixels, superpixels = decode_members(raw["members"], key=raw["__key__"], max_superpixels=max_superpixels)
    rng = sample_rng(seed=seed, epoch=raw["epoch"], sample_id=raw["sample_id"])
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    boxes = [
        random_crop_box(rng, width=width, height=height, scale=data.crop_scale, ratio=data.crop_ratio) for _ in (0, 1)
    ]
    flipped = rng.random(2) < augment.flip_probability
    views = np.stack(
        [
            _resized(image.crop(box), data.view_size)[:, :, :: -1 if flip else 1]
            for box, flip in zip(boxes, flipped, strict=True)
        ]
    )
    return Sample(
        sample_id=raw["sample_id"],
        image=_resized(image, data.image_size),
        superpixels=superpixels if superpixels.dtype == np.uint8 else superpixels.astype(np.int32),
        views=views,
        crop_box=np.asarray(boxes, dtype=np.float32) / np.array([width, height, width, height], dtype=np.float32),
        flipped=flipped,
        augment=draw_params(rng, augment),
    )


def decode_members(members: dict[str, bytes], *, key: str, max_superpixels: int) -> tuple[np.ndarray, np.ndarray]:
    """A sample's pixels (H, W, 3) uint8 and superpixels (S, S). Raises InputError, naming the key, on damage."""
    try:
        pixels = decode_jpeg(members[IMAGE_MEMBER])
        superpixels = decode_label_map(members[SUPERPIXELS_MEMBER])
        meta = SampleMeta.decode(members[META_MEMBER])
    except KeyError as error:
        raise InputError(f"sample {key} has no member {error.args[0]}; run `make shards` again") from None
    except ValueError as error:
        raise InputError(f"sample {key} is damaged ({error}); run `make shards` again") from None
    limit = min(meta.num_superpixels, max_superpixels)
    if pixels.shape[:2] != (meta.height, meta.width) or int(superpixels.max()) >= limit:
        raise InputError(f"sample {key}: image or label map is not what its json says; run `make shards` again")
    return pixels, superpixels


def _resized(image: Image.Image, size: int) -> np.ndarray:
    """Bicubic, antialiased, to size × size; uint8 (3, size, size)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
