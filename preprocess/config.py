"""Settings of the sections `shards` and `scenes`. Free of ray and torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.artifacts.names import Prefix
from pipeline.foundation.settings import Seed, Settings

Shape = Literal["disc", "box", "triangle", "star", "ring", "cross"]
SHAPES: tuple[Shape, ...] = ("disc", "box", "triangle", "star", "ring", "cross")
MAX_SEGMENTS = 255
NAME_OF_MAP = r"^[a-z0-9_]{1,70}$"  # its member, 000000000.superpixels-NAME.png, has the 100 bytes of a ustar name


class _MapSettings(Settings):
    """`size` is the side in pixels of the square that the whole image is resized to, with filter `resample`."""

    size: int = Field(224, ge=8, le=4096)
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear"

    @property
    def is_native(self) -> bool:
        """Whether the image is segmented at its own size, and `size` is of the stored map alone."""
        return False


class FastSlicSettings(_MapSettings):
    """SLIC by fast_slic: `segments` is what it aims at.

    A segment smaller than `min_size_factor` × (pixels / segments) is merged into a neighbour: fast_slic's own default,
    0.25, leaves 84–100 of 100 segments, 0.1 nearly always all of them. On BSDS500 5 `iterations` are as good as 10 to
    0.004 in every measure, and far better than scikit-image at as many segments (docs/benchmarks.md).
    """

    backend: Literal["fast_slic"] = "fast_slic"
    segments: int = Field(100, ge=1, le=MAX_SEGMENTS)
    compactness: float = Field(10.0, gt=0)
    iterations: int = Field(5, ge=1)
    min_size_factor: float = Field(0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _enough_pixels(self) -> FastSlicSettings:
        if self.size**2 < self.segments:
            raise ValueError(f"size {self.size} gives {self.size**2} pixels, fewer than {self.segments} segments")
        return self


class SkimageSettings(_MapSettings):
    """SLIC by scikit-image (the extra `skimage`), with its defaults; asked for 100 segments it gives about 71."""

    backend: Literal["skimage"] = "skimage"
    segments: int = Field(100, ge=1)
    compactness: float = Field(10.0, gt=0)
    iterations: int = Field(10, ge=1)
    sigma: float = Field(0.0, ge=0)
    min_size_factor: float = Field(0.5, ge=0)
    max_size_factor: float = Field(3.0, gt=0)


class GridSettings(_MapSettings):
    """Equal boxes, `rows` × `columns`: the spatial priors of Table A5."""

    backend: Literal["grid"] = "grid"
    rows: int = Field(10, ge=1)
    columns: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _enough_pixels(self) -> GridSettings:
        if max(self.rows, self.columns) > self.size:
            raise ValueError(f"{self.rows} × {self.columns} boxes do not fit into {self.size} × {self.size} pixels")
        return self


class FelzenszwalbSettings(_MapSettings):
    """Felzenszwalb's graph segmentation by scikit-image (the extra `skimage`).

    `segmented_at: native` segments the image at its own size, as DetCon does (`generate_fh_masks_for_imagenet.py`).
    `size` is then the side of the map that is stored: the ids at its pixels' centres. Both `scale` and `min_size` are
    of pixels, so that an image of more pixels has more segments. `segmented_at: size` resizes it before.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"segmented_at"})

    backend: Literal["felzenszwalb"] = "felzenszwalb"
    scale: float = Field(1000.0, gt=0)
    min_size: int = Field(1000, ge=1)
    sigma: float = Field(0.8, ge=0)
    segmented_at: Literal["size", "native"] = "size"

    @property
    def is_native(self) -> bool:
        """Whether the image is segmented at its own size, and `size` is of the stored map alone."""
        return self.segmented_at == "native"


def _with_backend(given: object) -> object:
    return {"backend": "fast_slic", **given} if isinstance(given, dict) else given


SuperpixelSettings = Annotated[
    Annotated[FastSlicSettings | SkimageSettings | GridSettings | FelzenszwalbSettings, Field(discriminator="backend")],
    BeforeValidator(_with_backend),
]


class SourceSettings(Settings):
    """What the images lie in, and which of them to take.

    `format` auto looks at the place itself. `classes` and `names` are files of one class or image name a line: only
    those are listed. `image` names the member (WebDataset) or column (Parquet) that holds the image, None finds it;
    `split` is the folder of images in COCO's layout.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"classes", "names"})  # the list of images shows them

    format: Literal["auto", "folder", "list", "tar", "webdataset", "parquet", "coco"] = "auto"
    classes: Path | None = None
    names: Path | None = None
    image: str | None = None
    split: str = "train2017"


class ShardSettings(Settings):
    """How images become shards.

    `seed` decides the order of the images over the whole set and which `count` of them are taken (None: all);
    `quality` is that of images that cannot keep their own bytes. An image of more than `max_pixels`, or whose
    decoding and superpixels take more than `max_cpu_seconds` or `max_memory_mb` (MiB, of the process's data), goes
    into quarantine. `maps` are further label maps by name, made in the same pass. `workers` (None: every CPU that Ray
    has), `max_bad_fraction` (of the listed images, above which the set is marked), `read_ahead` (images on their way
    from a URL at a time) and `retries` (of a shard whose worker or node was lost) say how a run goes; all else decides
    what is in the shards.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"workers", "max_bad_fraction", "read_ahead", "retries"})

    prefix: Prefix = "r2o"
    images_per_shard: int = Field(1024, ge=1, le=1_000_000)
    seed: Seed = 0
    count: int | None = Field(None, ge=1)
    quality: int = Field(95, ge=1, le=100)
    max_pixels: int = Field(89_478_485, ge=1)
    max_cpu_seconds: float = Field(60.0, gt=0)
    max_memory_mb: int = Field(2048, ge=256)
    source: SourceSettings = SourceSettings()
    superpixels: SuperpixelSettings = FastSlicSettings()
    maps: dict[Annotated[str, Field(pattern=NAME_OF_MAP)], SuperpixelSettings] = Field(default_factory=dict)
    workers: int | None = Field(None, ge=1)
    max_bad_fraction: float = Field(0.01, ge=0, le=1)
    read_ahead: int = Field(16, ge=1, le=1024)
    retries: int = Field(5, ge=0)


class SceneSettings(Settings):
    """The generated demo images: `pretrain_images` as class folders, `train_images` + `val_images` as VOC2012.

    `size` is the side in pixels; `shapes` are the classes, in id order from 1; `objects` the least and most a scene
    gets; `void_width` the width in pixels of the border that masks leave out on each side of an outline.
    """

    pretrain_images: int = Field(384, ge=1)
    train_images: int = Field(96, ge=1)
    val_images: int = Field(48, ge=1)
    size: int = Field(128, ge=32, le=1024)
    seed: Seed = 0
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
