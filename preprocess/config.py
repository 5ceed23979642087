"""Settings of the sections `shards` and `scenes`. Free of ray and torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.artifacts.settings import Settings

Shape = Literal["disc", "box", "triangle", "star", "ring", "cross"]
SHAPES: tuple[Shape, ...] = ("disc", "box", "triangle", "star", "ring", "cross")
MAX_SEGMENTS = 255


class SuperpixelSettings(Settings):
    """How an image becomes a label map.

    `size` is the side in pixels of the square that the whole image is resized to with filter `resample`;
    `segments` is what SLIC aims at. A segment smaller than `min_size_factor` × (pixels / segments) is merged into
    a neighbour: fast_slic's own default, 0.25, leaves 84–100 of 100 segments, 0.1 nearly always all of them.
    """

    backend: Literal["fast_slic"] = "fast_slic"
    segments: int = Field(100, ge=1, le=MAX_SEGMENTS)
    compactness: float = Field(10.0, gt=0)
    iterations: int = Field(10, ge=1)
    min_size_factor: float = Field(0.1, ge=0, le=1)
    size: int = Field(224, ge=8, le=4096)
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @model_validator(mode="after")
    def _enough_pixels(self) -> SuperpixelSettings:
        if self.size**2 < self.segments:
            raise ValueError(f"size {self.size} gives {self.size**2} pixels, fewer than {self.segments} segments")
        return self


class ShardSettings(Settings):
    """How images become shards.

    `seed` decides the order of the images over the whole set, `quality` is that of images that cannot keep their
    own bytes. `workers` (None: every CPU that Ray has) and `max_bad_fraction` (of the listed images, above which
    the command fails) say how a run goes; all else decides what is in the shards.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"workers", "max_bad_fraction"})

    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$")] = "r2o"
    images_per_shard: int = Field(1024, ge=1, le=1_000_000)
    seed: int = Field(0, ge=0)
    quality: int = Field(95, ge=1, le=100)
    superpixels: SuperpixelSettings = SuperpixelSettings()
    workers: int | None = Field(None, ge=1)
    max_bad_fraction: float = Field(0.01, ge=0, le=1)


class SceneSettings(Settings):
    """The generated demo images: `pretrain_images` as class folders, `train_images` + `val_images` as VOC2012.

    `size` is the side in pixels; `shapes` are the classes, in id order from 1; `objects` the least and most a scene
    gets; `void_width` the width in pixels of the border that masks leave out on each side of an outline.
    """

    pretrain_images: int = Field(384, ge=1)
    train_images: int = Field(96, ge=1)
    val_images: int = Field(48, ge=1)
    size: int = Field(128, ge=32, le=1024)
    seed: int = Field(0, ge=0)
    shapes: tuple[Shape, ...] = SHAPES
    objects: tuple[int, int] = (2, 5)
    void_width: int = Field(1, ge=0, le=8)
    quality: int = Field(95, ge=1, le=100)

    @model_validator(mode="after")
    def _sensible(self) -> SceneSettings:
        if not self.shapes or len(set(self.shapes)) != len(self.shapes):
            raise ValueError("shapes must name at least one shape, each once")
        if not 1 <= self.objects[0] <= self.objects[1] <= 12:
            raise ValueError(f"objects must be a least and a most number between 1 and 12, not {list(self.objects)}")
        return self
