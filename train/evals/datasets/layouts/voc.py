"""PASCAL VOC: labels, objects and boxes of a folder of VOC2012's layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.foundation.pictures import VOID
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import Annotated
from train.evals.datasets.decode import check_ids, check_same_size, decode_ids
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.label_maps import labels_of_ids, objects_of_classes, objects_of_instances
from train.evals.datasets.layouts.voc_boxes import boxes_of_voc
from train.evals.segmentation.voc_folder import IMAGE_FOLDER, MASK_FOLDER, VocFolder

AUGMENTED_MASKS, INSTANCE_MASKS, BOX_FOLDER = "SegmentationClassAug", "SegmentationObject", "Annotations"
AUGMENTED_LIST = "trainaug"
BACKGROUND = 0


def is_voc(path: Path) -> bool:
    """Whether `path` is VOC2012, VOCdevkit or the folder that holds it."""
    return any((root / IMAGE_FOLDER).is_dir() for root in (path, path / "VOC2012", path / "VOCdevkit" / "VOC2012"))


def find_voc(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """Lists, masks and boxes. Raises InputError where a list cannot be read or names what is no name."""
    folder = VocFolder.open(path)
    has, lacks = _has(folder, settings, needs)
    train_list = settings.train_list or _train_list(folder, settings)
    val_masks = _val_masks(folder, settings)
    train_masks = settings.train_masks or (AUGMENTED_MASKS if train_list == AUGMENTED_LIST else val_masks)
    notes, train = [], None
    if train_list:
        train = _part(folder, "train", train_list, train_masks, has & {"labels"}, instances=False)
        notes.append(f"train is list {train_list}" + (f" with masks of {train_masks}" if "labels" in has else ""))
    val_list, instances = settings.val_list or "val", settings.objects == "instances"
    val = _part(folder, "val", val_list, val_masks, has, instances=instances)
    masked = f" with masks of {val_masks}" if has & {"labels", "objects"} else ""
    notes.append(f"val is list {val_list}{masked}")
    if "objects" in has:
        notes.append("objects are " + ("instances of SegmentationObject" if instances else "classes of an image"))
    if "boxes" in has:
        notes.append("boxes marked difficult or truncated count, as in LOST")
    return FoundData(
        root=folder.root,
        classes=folder.classes,
        background=BACKGROUND,
        val=val,
        train=train,
        notes=tuple(notes),
        lacks=lacks,
    )


def _has(
    folder: VocFolder, settings: FrozenDataSettings, needs: frozenset[Annotation]
) -> tuple[frozenset[Annotation], dict[Annotation, str]]:
    root, lacks = folder.root, dict[Annotation, str]()
    masks = root / _val_masks(folder, settings)
    if not masks.is_dir():
        lacks |= dict.fromkeys(("labels", "objects"), f"{masks} is missing; take it from VOC2012's archive")
    if settings.objects == "instances" and not (root / INSTANCE_MASKS).is_dir():
        lacks["objects"] = f"{root / INSTANCE_MASKS} is missing; take it from VOC2012's archive, or objects=classes"
    if not (root / BOX_FOLDER).is_dir():
        lacks["boxes"] = f"{root / BOX_FOLDER} is missing; take it from VOC2012's archive (an XML an image)"
    lacks["class_id"] = "images of VOC show many classes; give class folders"
    return needs - lacks.keys(), {key: text for key, text in lacks.items() if key in needs}


def _train_list(folder: VocFolder, settings: FrozenDataSettings) -> str | None:
    """trainaug where it and its masks are there, else train; None where there is neither."""
    masks = folder.root / (settings.train_masks or AUGMENTED_MASKS)
    if folder.list_file(AUGMENTED_LIST).is_file() and masks.is_dir():
        return AUGMENTED_LIST
    return "train" if folder.list_file("train").is_file() else None


def _val_masks(folder: VocFolder, settings: FrozenDataSettings) -> str:
    if settings.val_masks:
        return settings.val_masks
    only_augmented = (folder.root / AUGMENTED_MASKS).is_dir() and not (folder.root / MASK_FOLDER).is_dir()
    return AUGMENTED_MASKS if only_augmented else MASK_FOLDER


def _part(
    folder: VocFolder, part: DataPart, list_name: str, masks: str, has: frozenset[Annotation], *, instances: bool
) -> FoundPart:
    entries = []
    for name in folder.names(list_name, masks=masks if has & {"labels", "objects"} else None):
        file = folder.file(name, masks=masks)
        needed = _Files(
            image=file.image,
            mask=file.mask if has & {"labels", "objects"} else None,
            instances=folder.root / INSTANCE_MASKS / f"{name}.png" if instances and "objects" in has else None,
            boxes=folder.root / BOX_FOLDER / f"{name}.xml" if "boxes" in has else None,
            num_classes=len(folder.classes),
            has=has,
        )
        entries.append(ListedImage(name=name, image=file.image, files=needed.paths, annotate=needed.annotate))
    where = folder.list_file(list_name)
    return FoundPart(part=part, title=list_name, where=where, entries=tuple(entries), has=has)


@dataclass(frozen=True, kw_only=True)
class _Files:
    """The files of one image that will be read; the others are None."""

    image: Path
    mask: Path | None
    instances: Path | None
    boxes: Path | None
    num_classes: int
    has: frozenset[Annotation]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.mask, self.instances, self.boxes) if path)

    def annotate(self, image: np.ndarray, contents: Sequence[bytes]) -> Annotated:
        data = dict(zip(self.paths, contents, strict=True))
        labels = objects = boxes = None
        if self.mask:
            ids = self._ids(self.mask, data[self.mask], image, num_classes=self.num_classes)
            labels = labels_of_ids(ids, void=VOID)
            if self.instances:
                instances = self._ids(self.instances, data[self.instances], image, num_classes=VOID)
                objects = objects_of_instances(instances, labels, void=VOID, background=BACKGROUND)
            elif "objects" in self.has:
                objects = objects_of_classes(labels, background=BACKGROUND)
        if self.boxes:
            boxes = boxes_of_voc(self.boxes, data[self.boxes], size=image.shape[:2])
        return Annotated(image, labels if "labels" in self.has else None, objects, boxes)

    def _ids(self, path: Path, data: bytes, image: np.ndarray, *, num_classes: int) -> np.ndarray:
        ids = decode_ids(path, data, num_classes=num_classes)
        check_same_size(path, ids, self.image, image)
        check_ids(path, ids, num_classes=num_classes)
        return ids
