"""Demo images with known masks, from nothing: class folders to pretrain on, a VOC2012 folder to evaluate on."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.names import Sha256
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import is_temporary, refuse_link, sync_folder, write_atomic
from pipeline.foundation.progress import Progress
from preprocess.config import SceneSettings
from preprocess.demo.processes import processes_for, write_scenes
from preprocess.demo.scene_files import CLASS_FOLDERS, VOC, planned_scenes

SCENES_VERSION = 1
MARKER_NAME, MAKING = "scenes.json", ".making"
PARTS = ("images", "VOCdevkit")


class _Record(BaseModel):
    fingerprint: Sha256
    settings: dict[str, Any]


def make_scenes(out: Path, settings: SceneSettings, *, processes: int | None = None) -> bool:
    """Fill `out`, unless it already holds what these settings give; whether anything was made.

    Args:
        processes: that make scenes; None: one a core, where there is enough to do. The files are the same.
    Raises:
        InputError: `out` is a file, or holds something else, or a link where a part would lie; a process was killed.
        OSError: as writing a file raises it.
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
    _make_folders(making, settings)
    planned = planned_scenes(settings)
    progress = Progress("scenes", len(planned), "scenes")
    processes = processes or processes_for(settings, len(planned))
    write_scenes(making, settings, planned, processes=processes, done=lambda: progress.advance(1))
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


def _make_folders(making: Path, settings: SceneSettings) -> None:
    """Every folder, and the lists of VOC2012's layout."""
    lists = making / VOC / "ImageSets" / "Segmentation"
    for path in (*(making / CLASS_FOLDERS / name for name in settings.shapes), lists):
        path.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass"):
        (making / VOC / name).mkdir()
    planned = planned_scenes(settings)
    members = {split: [one.name for one in planned if one.split == split] for split in ("train", "val")}
    for split, names in {**members, "trainval": members["train"] + members["val"]}.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    (making / VOC / "classes.txt").write_text("\n".join(("background", *settings.shapes)) + "\n", encoding="utf-8")
