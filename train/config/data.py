"""Settings of the samples: sizes, crops, order, trouble, augmentations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.foundation.settings import Settings
from train.config.numbers import Positive, Probability, Range, Rate


class DataSettings(Settings):
    """What a sample looks like, in which order samples come, and what to do about trouble. Sizes in pixels.

    Attributes:
        lane_groups: parts of the set that feed parts of every global batch. As many as nodes: each node reads only its
            share of the shards, at some cost in mixing.
        view_superpixels: also crop the superpixels jointly with each view.
        superpixel_maps: further maps of the shards, by name, and their number of segments. Where there are any, the one
            nearest to K(t) (by ratio) is read in place of the superpixels.
        augment: where pixels are augmented. On the host they are rounded to uint8 again, as Pillow's transforms do.
        decode: where JPEGs are decoded and cropped; on a CUDA device by nvJPEG. What it refuses
            is decoded on the host. Wrong pixels that it lets pass are found by `verify` alone.
        on_damage: `fail` ends the run at the first sample that cannot be read; `skip` puts the next sample of the epoch
            in its place, names it in skipped.jsonl, and fails when more than `max_skipped_fraction` of an epoch are.
        cache: folder on this node's disk into which shards are copied before they are needed; without it shards behind
            a URL go to ~/.cache/r2o (or $R2O_CACHE), and those in a folder are read where they lie. A folder that other
            users may write to is refused.
        verify: compare every shard's SHA-256 with the manifest before it is first used.
        recheck_days: a shard that was compared longer ago than that is compared again before a process first uses it;
            null: never.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers", "prefetch_batches", "accept_over_limit", "on_damage", "max_skipped_fraction",
            "cache", "cache_gb", "verify", "recheck_days", "retries",
        }
    )  # fmt: skip

    image_size: Positive = 224
    view_size: Positive = 224
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    view_superpixels: bool = False
    superpixel_maps: dict[str, Positive] = Field(default_factory=dict)
    augment: Literal["device", "host"] = "device"
    decode: Literal["host", "device"] = "host"
    shuffle_lanes: Positive = Field(64, description="places of the set that are read side by side")
    lane_groups: Positive = 1
    num_workers: Annotated[int, Field(ge=0)] = Field(4, description="decoding processes per rank, at most one per core")
    prefetch_batches: Positive = Field(2, description="batches that each of them has ready")
    accept_over_limit: bool = Field(False, description="use shards of which more images are bad than was allowed")
    on_damage: Literal["fail", "skip"] = "fail"
    max_skipped_fraction: Probability = Field(0.001, description="of the samples of an epoch")
    cache: Path | None = None
    cache_gb: Annotated[float, Field(gt=0)] = Field(32.0, description="what it may hold, in 1e9 bytes")
    verify: bool = True
    recheck_days: Annotated[float, Field(gt=0)] | None = 7.0
    retries: Annotated[int, Field(ge=0)] = Field(3, description="of a read that fails")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shuffle_lanes % self.lane_groups:
            raise ValueError(f"shuffle_lanes {self.shuffle_lanes} is no multiple of lane_groups {self.lane_groups}")
        for name, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} {[low, high]} is not [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)} goes beyond the whole image, 1")
        if self.decode == "device" and self.augment == "host":
            raise ValueError("augment: host needs decode: host; views that are cut on the device are augmented there")
        return self


class AugmentSettings(Settings):
    """BYOL's augmentations as the paper lists them (A.1). Pairs are (view 1, view 2)."""

    flip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: Rate = 0.4
    contrast: Rate = 0.4
    saturation: Rate = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
    blur_kernel_size: Positive = Field(23, description="pixels, odd")
    blur_sigma: Range = (0.1, 2.0)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128

    @model_validator(mode="after")
    def _odd_kernel(self) -> Self:
        if self.blur_kernel_size % 2 == 0:
            raise ValueError(f"blur_kernel_size must be odd, not {self.blur_kernel_size}")
        return self
