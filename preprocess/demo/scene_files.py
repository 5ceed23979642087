"""What lies on disk of one scene: a photo in a class folder, or a photo and its mask in VOC2012's layout."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from pipeline.foundation.pictures import VOID, voc_palette
from preprocess.config import SceneSettings
from preprocess.demo.scene_art import Scene, make_scene

CLASS_FOLDERS, VOC = Path("images"), Path("VOCdevkit") / "VOC2012"
STREAMS = {"pretrain": 0, "train": 1, "val": 2}  # of random numbers, by what the scenes are for


class PlannedScene(NamedTuple):
    """Scene `number`, from 0, of those for `split`, one of `STREAMS`."""

    split: str
    number: int

    @property
    def name(self) -> str:
        """Its files' name without suffix."""
        return f"{'scene' if self.split == 'pretrain' else self.split}_{self.number:06d}"


def planned_scenes(settings: SceneSettings) -> list[PlannedScene]:
    """All scenes of a demo."""
    counts = {"pretrain": settings.pretrain_images, "train": settings.train_images, "val": settings.val_images}
    return [PlannedScene(split, number) for split, count in counts.items() for number in range(count)]


def write_scene(folder: Path, settings: SceneSettings, planned: PlannedScene) -> None:
    """Make a scene and write its files below `folder`, whose folders are there."""
    scene = make_scene(settings, stream=STREAMS[planned.split], index=planned.number)
    photo = _jpeg(scene.image, settings.quality)
    if planned.split == "pretrain":
        (folder / CLASS_FOLDERS / settings.shapes[scene.dominant - 1] / f"{planned.name}.jpg").write_bytes(photo)
        return
    (folder / VOC / "JPEGImages" / f"{planned.name}.jpg").write_bytes(photo)
    mask = _palette_png(voc_mask(scene, void_width=settings.void_width))
    (folder / VOC / "SegmentationClass" / f"{planned.name}.png").write_bytes(mask)


def voc_mask(scene: Scene, *, void_width: int) -> np.ndarray:
    """Class ids uint8 (S, S), with 255 on the `void_width` pixels to each side of an object's outline."""
    if not void_width:
        return scene.classes
    instances = Image.fromarray(scene.instances)
    side = 2 * void_width + 1
    most, least = (instances.filter(kind(side)) for kind in (ImageFilter.MaxFilter, ImageFilter.MinFilter))
    return np.where(np.asarray(most) != np.asarray(least), np.uint8(VOID), scene.classes)


def _palette_png(mask: np.ndarray) -> bytes:
    image = Image.fromarray(mask)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _jpeg(image: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
