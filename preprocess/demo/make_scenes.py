"""Demo images with known masks, from nothing: class folders to pretrain on, a VOC2012 folder to evaluate on."""

from __future__ import annotations

import io
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from pydantic import BaseModel

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.names import Sha256
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import is_temporary, refuse_link, sync_folder, write_atomic
from pipeline.foundation.pictures import VOID, voc_palette
from pipeline.foundation.progress import Progress
from preprocess.config import SceneSettings
from preprocess.demo.scene_art import Scene, make_scene

SCENES_VERSION = 1
MARKER_NAME, MAKING = "scenes.json", ".making"
PARTS = ("images", "VOCdevkit")
PRETRAIN, TRAIN, VAL = range(3)


class _Record(BaseModel):
    fingerprint: Sha256
    settings: dict[str, Any]


def make_scenes(out: Path, settings: SceneSettings) -> bool:
    """Fill `out`, unless it already holds what these settings give; whether anything was made.

    Raises:
        InputError: `out` is a file, or holds something else, or a link where a part would lie.
    """
    identity = fingerprint(
        scenes_version=SCENES_VERSION, settings=settings, versions={name: version(name) for name in ("numpy", "pillow")}
    )
    marker, making = out / MARKER_NAME, out / MAKING
    for name in (MARKER_NAME, MAKING, *PARTS):
        refuse_link(out / name)
    if _marked(out) == identity and not making.exists():
        return False
    shutil.rmtree(making, ignore_errors=True)
    (making / PARTS[0]).mkdir(parents=True)
    progress = Progress("scenes", settings.pretrain_images + settings.train_images + settings.val_images, "scenes")
    _write_class_folders(making / PARTS[0], settings, progress)
    _write_voc(making / PARTS[1] / "VOC2012", settings, progress)
    marker.unlink(missing_ok=True)
    sync_folder(out)
    for part in PARTS:
        if (out / part).exists():
            shutil.rmtree(out / part)
        (making / part).rename(out / part)
    sync_folder(out)
    record = {"fingerprint": identity, "settings": settings.model_dump(mode="json")}
    write_atomic(marker, json.dumps(record, sort_keys=True, indent=1) + "\n")
    making.rmdir()
    return True


def _marked(out: Path) -> str | None:
    """The fingerprint that `out` was made with; None where it has to be made."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file; give a folder")
    found = {entry.name for entry in out.iterdir() if not is_temporary(entry)} if out.is_dir() else set()
    if found and not found & {MARKER_NAME, MAKING}:
        raise InputError(f"--out {out}: holds {min(found)!r} but no scenes; give an empty or new folder")
    if MARKER_NAME not in found:
        return None
    try:
        record = _Record.model_validate_json((out / MARKER_NAME).read_bytes())
    except (OSError, ValueError):
        raise InputError(
            f"--out {out}: {MARKER_NAME} is damaged or none of ours; move it and {' and '.join(PARTS)} away, or "
            "give an empty or new folder"
        ) from None
    return record.fingerprint if found.issuperset(PARTS) else None


def _write_class_folders(folder: Path, settings: SceneSettings, progress: Progress) -> None:
    for name in settings.shapes:
        (folder / name).mkdir(parents=True)
    for index in range(settings.pretrain_images):
        scene = make_scene(settings, stream=PRETRAIN, index=index)
        path = folder / settings.shapes[scene.dominant - 1] / f"scene_{index:06d}.jpg"
        path.write_bytes(_jpeg(scene.image, settings.quality))
        progress.advance(1)


def _write_voc(folder: Path, settings: SceneSettings, progress: Progress) -> None:
    lists = folder / "ImageSets" / "Segmentation"
    for path in (folder / "JPEGImages", folder / "SegmentationClass", lists):
        path.mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for split, stream, count in (("train", TRAIN, settings.train_images), ("val", VAL, settings.val_images)):
        names[split] = [f"{split}_{index:06d}" for index in range(count)]
        for index, name in enumerate(names[split]):
            scene = make_scene(settings, stream=stream, index=index)
            (folder / "JPEGImages" / f"{name}.jpg").write_bytes(_jpeg(scene.image, settings.quality))
            mask = _palette_png(voc_mask(scene, void_width=settings.void_width))
            (folder / "SegmentationClass" / f"{name}.png").write_bytes(mask)
            progress.advance(1)
    for split, members in {**names, "trainval": names["train"] + names["val"]}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in members), encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(("background", *settings.shapes)) + "\n", encoding="utf-8")


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
