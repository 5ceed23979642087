"""Two views of an image and the label map that goes with them: crop boxes, the joint crop, and one sample's arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from pipeline.artifacts.label_maps import MAIN_MAP, map_member
from pipeline.artifacts.sample import (
    IMAGE_MEMBER,
    META_MEMBER,
    SampleMeta,
    decode_jpeg,
    decode_label_map,
)
from pipeline.foundation.errors import InputError
from train.config.data import AugmentSettings, DataSettings
from train.data.augment import AugmentParams, augment_on_host, draw_params
from train.data.resize import resized, resized_together
from train.data.shards.reader import Skipped

JPEG_END = b"\xff\xd9"  # the marker EOI of ITU T.81
TOGETHER = 32  # images whose float pixels a GPU holds at once: some 200 MB
CROP_ATTEMPTS = 10  # as torchvision's RandomResizedCrop, before it falls back to the centre


class PixelBox(NamedTuple):
    """A crop in pixels of the decoded image; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


class Geometry(NamedTuple):
    """How a sample's two views are cut and altered: all of its randomness in one epoch.

    boxes: in pixels of the image; crop_box (2, 4) float32, the same as xyxy in [0, 1] of the whole image; flipped (2,)
    bool; augment: parameters per view.
    """

    boxes: tuple[PixelBox, PixelBox]
    crop_box: np.ndarray
    flipped: np.ndarray
    augment: AugmentParams


class Sample(NamedTuple):
    """What the trainer gets of one image.

    image (H, W, 3) and views, two of (h, w, 3), mirrored where `flipped`: uint8; None where the device decodes `jpeg`.
    superpixels (S, S) uint8, or uint16 where ids pass 255; view_superpixels (2, h, w), where asked for. skipped: the
    sample in whose place this one came, where that could not be read. slot: epoch, place and the sample id that belongs
    there.
    """

    sample_id: int
    image: Tensor | None
    superpixels: np.ndarray
    views: tuple[Tensor, Tensor] | None
    geometry: Geometry
    view_superpixels: np.ndarray | None = None
    jpeg: bytes | None = None
    skipped: Skipped | None = None
    slot: tuple[int, int, int] = (-1, -1, -1)


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
    seen: np.ndarray = label_map[y[:, None], (x[::-1] if flipped else x)[None, :]]
    return seen


def sample_rng(*, seed: int, epoch: int, sample_id: int) -> np.random.Generator:
    """The random numbers of one sample in one epoch; no rank or worker enters."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, sample_id])))


def draw_geometry(
    rng: np.random.Generator, *, width: int, height: int, data: DataSettings, augment: AugmentSettings
) -> Geometry:
    """Boxes, flips and augmentations of the two views of an image of so many pixels."""
    first, second = (
        random_crop_box(rng, width=width, height=height, scale=data.crop_scale, ratio=data.crop_ratio) for _ in (0, 1)
    )
    flipped = rng.random(2) < augment.flip_probability
    extent = np.array([width, height, width, height], dtype=np.float32)
    crop_box = np.asarray((first, second), dtype=np.float32) / extent
    return Geometry((first, second), crop_box, flipped, draw_params(rng, augment))


def make_sample(
    members: Mapping[str, bytes],
    *,
    key: str,
    sample_id: int,
    epoch: int,
    seed: int,
    data: DataSettings,
    augment: AugmentSettings,
    max_superpixels: int,
    map_name: str = MAIN_MAP,
    strictly: bool = False,
) -> Sample:
    """Decode once, resize the whole image, cut two views.

    Args:
        members: the sample's files, by name.
        map_name: of the label map that gives the superpixels.
        strictly: a JPEG that the device decodes is decoded here too, to know that it can be.
    Raises:
        InputError: a member is missing or damaged, or the label map has ids that the manifest rules out.
    """
    meta, superpixels = decode_labels(members, key=key, max_superpixels=max_superpixels, map_name=map_name)
    rng = sample_rng(seed=seed, epoch=epoch, sample_id=sample_id)
    geometry = draw_geometry(rng, width=meta.width, height=meta.height, data=data, augment=augment)
    sample = Sample(
        sample_id=sample_id,
        image=None,
        superpixels=superpixels,
        views=None,
        geometry=geometry,
        view_superpixels=_joint_crops(superpixels, geometry, data.view_size) if data.view_superpixels else None,
    )
    if data.decode == "device":
        return sample._replace(jpeg=_for_device(members[IMAGE_MEMBER], key=key, strictly=strictly))
    pixels = torch.from_numpy(decode_pixels(members[IMAGE_MEMBER], key=key))
    image, views = resize_and_crop(
        pixels.permute(2, 0, 1), geometry, image_size=data.image_size, view_size=data.view_size
    )
    if data.augment == "host":
        first, second = augment_on_host(torch.stack(views), geometry.augment, augment)
        views = (first, second)
    return sample._replace(image=image.permute(1, 2, 0), views=(views[0].permute(1, 2, 0), views[1].permute(1, 2, 0)))


def decode_labels(
    members: Mapping[str, bytes], *, key: str, max_superpixels: int, map_name: str = MAIN_MAP
) -> tuple[SampleMeta, np.ndarray]:
    """What a sample's json says, and its superpixels (S, S); the JPEG's header is compared with the json.

    Raises:
        InputError: names the key and what is missing or damaged.
    """
    try:
        superpixels = decode_label_map(members[map_member(map_name)])
        meta = SampleMeta.decode(members[META_MEMBER])
        height, width, *_ = simplejpeg.decode_jpeg_header(members[IMAGE_MEMBER])
    except KeyError as error:
        raise InputError(f"sample {key} has no member {error.args[0]}; run `make shards` again") from None
    except ValueError as error:
        raise InputError(f"sample {key} is damaged ({error}); run `make shards` again") from None
    is_main = map_name == MAIN_MAP  # the json counts the ids of that one
    limit = min(meta.num_superpixels, max_superpixels) if is_main else max_superpixels
    if (height, width) != (meta.height, meta.width) or int(superpixels.max()) >= limit:
        raise InputError(f"sample {key}: image or label map is not what its json says; run `make shards` again")
    return meta, superpixels


def _for_device(jpeg: bytes, *, key: str, strictly: bool) -> bytes:
    """The JPEG. Raises InputError where it is found to be damaged.

    A file that is cut short does not end with the marker for the end, and nvJPEG may decode it without a word. Some
    whole files have bytes after that marker, so the host's decoder decides. Wrong bytes within a file are found only
    by decoding it; what guards against them is the shard's checksum.
    """
    if strictly or not jpeg.endswith(JPEG_END):
        decode_pixels(jpeg, key=key)
    return jpeg


def decode_pixels(jpeg: bytes, *, key: str) -> np.ndarray:
    """A sample's pixels, uint8 (H, W, 3). Raises InputError, naming the key, on damage."""
    try:
        return decode_jpeg(jpeg)
    except ValueError as error:
        raise InputError(f"sample {key} is damaged ({error}); run `make shards` again") from None


def resize_and_crop(
    pixels: Tensor, geometry: Geometry, *, image_size: int, view_size: int
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The whole image and the two views, mirrored where they are to be; bicubic, antialiased, uint8.

    Args:
        pixels: uint8 (3, H, W) on any device.
    Returns:
        (3, image_size, image_size) and two of (3, view_size, view_size), channels last in memory.
    """
    first, second = (
        resized(pixels[:, box.top : box.bottom, box.left : box.right], view_size) for box in geometry.boxes
    )
    flip_first, flip_second = geometry.flipped.tolist()
    views = (first.flip(-1) if flip_first else first, second.flip(-1) if flip_second else second)
    return resized(pixels, image_size), views


def resize_and_crop_together(
    decoded: Sequence[Tensor],
    boxes: Sequence[tuple[PixelBox, PixelBox]],
    flipped: Tensor,
    *,
    image_size: int,
    view_size: int,
) -> tuple[Tensor, Tensor]:
    """As `resize_and_crop` of every image on a GPU, with a quarter of its launches: 4 an image.

    Args:
        decoded: uint8 (3, H, W) each.
        flipped: (b, 2) bool, on the host.
    Returns:
        (b, 3, image_size, image_size) and (b, 2, 3, view_size, view_size), uint8.
    """
    images, views = [], []
    for begin in range(0, len(decoded), TOGETHER):
        floats = [pixels.float() for pixels in decoded[begin : begin + TOGETHER]]
        crops = [
            pixels[:, box.top : box.bottom, box.left : box.right]
            for pixels, pair in zip(floats, boxes[begin : begin + TOGETHER], strict=True)
            for box in pair
        ]
        images.append(resized_together(floats, image_size))
        views.append(resized_together(crops, view_size))
    upright = torch.cat(views).unflatten(0, (-1, 2))
    mirrored = flipped.to(upright.device, non_blocking=True).view(-1, 2, 1, 1, 1)
    return torch.cat(images), torch.where(mirrored, upright.flip(-1), upright)


def _joint_crops(superpixels: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    return np.stack(
        [
            crop_label_map(superpixels, tuple(box.tolist()), flipped=bool(flip), size=(size, size))
            for box, flip in zip(geometry.crop_box, geometry.flipped, strict=True)
        ]
    )
