"""COCO: labels and objects of panoptic PNGs, boxes of instances.

<list>/x.jpg  annotations/instances_<list>.json  annotations/panoptic_<list>.json  annotations/panoptic_<list>/x.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from pipeline.foundation.errors import InputError
from train.config.frozen import Annotation, DataPart, FrozenDataSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated, Objects
from train.evals.datasets.decode import check_same_size, decode_rgb_mask
from train.evals.datasets.found import FoundData, FoundPart, ListedImage
from train.evals.datasets.layouts.coco_json import CocoImage, Instances, Panoptic, read_instances, read_panoptic
from train.evals.datasets.lists import require_name

_TRAIN, _VAL, _FOLDER = "train2017", "val2017", "annotations"
_MASKED = frozenset[Annotation]({"labels", "objects"})
_GIVES = _MASKED | {"boxes"}
_NO_SEGMENTS: Mapping[int, tuple[int, bool]] = {}
_SLACK = 1.0  # pixels that a box may reach beyond its image, by rounding


def is_coco(path: Path) -> bool:
    """Whether `path` has annotations/instances_….json or panoptic_….json."""
    return any(next((path / _FOLDER).glob(f"{kind}_*.json"), None) for kind in ("instances", "panoptic"))


def find_coco(path: Path, settings: FrozenDataSettings, needs: frozenset[Annotation]) -> FoundData:
    """The images that the JSON files list, in their order.

    Raises:
        InputError: a JSON file is wrong, or the two of a list are of other images or categories.
    """
    val_list, train_list = settings.val_list or _VAL, settings.train_list or _TRAIN
    lacks = _lacks(path, val_list)
    val = _CocoList.read(path, val_list, needs & _GIVES - lacks.keys())
    train = None
    if settings.train_list or _image_folder(path, train_list).is_dir():
        train_has = needs & {"labels"} - _lacks(path, train_list).keys()
        train = _CocoList.read(path, train_list, train_has)
        if train_has and val.has & _MASKED and train.categories != val.categories:
            raise InputError(f"{path / _FOLDER}: panoptic_{train_list} and panoptic_{val_list} have other categories")
    notes = [f"val is list {val_list}"]
    if "objects" in val.has:
        notes.append("objects are panoptic segments, of things and of stuff; crowds are void")
    if "boxes" in val.has:
        notes.append("boxes of crowds are left out")
    return FoundData(
        root=path,
        classes=tuple(val.categories.values()),
        background=None,
        val=val.part("val"),
        train=train.part("train") if train else None,
        notes=tuple(notes),
        lacks={key: text for key, text in lacks.items() if key in needs},
    )


def _json_path(path: Path, kind: str, list_name: str) -> Path:
    return path / _FOLDER / f"{kind}_{list_name}.json"


def _image_folder(path: Path, list_name: str) -> Path:
    below = path / "images" / list_name
    return below if below.is_dir() else path / list_name


def _lacks(path: Path, list_name: str) -> dict[Annotation, str]:
    lacks: dict[Annotation, str] = {"class_id": "images of COCO show many classes; give class folders"}
    panoptic, instances = (_json_path(path, kind, list_name) for kind in ("panoptic", "instances"))
    if not panoptic.is_file():
        lacks |= dict.fromkeys(_MASKED, f"{panoptic} is missing; take it and its PNGs from COCO's panoptic archive")
    if not instances.is_file():
        lacks["boxes"] = f"{instances} is missing; take it from COCO's archive of annotations"
    return lacks


@dataclass(frozen=True, kw_only=True)
class _CocoList:
    """What the JSON files say of the images of one list. `categories`: names by id, in the order of ids."""

    name: str
    folder: Path
    masks: Path
    has: frozenset[Annotation]
    images: tuple[CocoImage, ...]
    panoptic: Panoptic | None
    instances: Instances | None

    @classmethod
    def read(cls, path: Path, name: str, has: frozenset[Annotation]) -> _CocoList:
        panoptic_path, instances_path = (_json_path(path, kind, name) for kind in ("panoptic", "instances"))
        with_boxes = "boxes" in has or not panoptic_path.is_file()  # else whatever lists the images
        instances = read_instances(instances_path) if with_boxes else None
        panoptic = read_panoptic(panoptic_path) if has & _MASKED or not with_boxes else None
        lists = [one.images for one in (instances, panoptic) if one]
        if len({frozenset(one) for one in lists}) > 1:
            other = sorted(set(lists[0]) ^ set(lists[1]), key=lambda image: image.file_name)[0]
            raise InputError(f"{instances_path} and {panoptic_path} do not list the same {other.file_name}")
        source = instances_path if instances else panoptic_path
        for image in lists[0]:
            require_name(image.file_name, path=source, below=name)
        return cls(
            name=name,
            folder=_image_folder(path, name),
            masks=path / _FOLDER / f"panoptic_{name}",
            has=has,
            images=lists[0],
            panoptic=panoptic,
            instances=instances,
        )

    @property
    def categories(self) -> Mapping[int, str]:
        source = self.panoptic or self.instances
        assert source
        return source.categories

    def part(self, part: DataPart) -> FoundPart:
        entries = tuple(self._listed(image) for image in self.images)
        return FoundPart(part=part, title=self.name, where=self.folder, entries=entries, has=self.has)

    def _listed(self, image: CocoImage) -> ListedImage:
        facts: dict[str, Any] = {"width": image.width, "height": image.height}
        mask, boxes, segments = None, None, _NO_SEGMENTS
        if self.panoptic and self.has & _MASKED:
            told = self.panoptic.segments[image.id]
            mask, segments = self.masks / told.file_name, told.segments
            facts["segments"] = [list(item) for item in segments.items()]
        if self.instances and "boxes" in self.has:
            boxes = self.instances.boxes.get(image.id, ())
            facts["boxes"] = boxes
        files = _Files(
            image=self.folder / image.file_name,
            size=(image.height, image.width),
            mask=mask,
            segments=segments,
            classes={category: i for i, category in enumerate(self.categories)},
            boxes=boxes,
            has=self.has,
        )
        return ListedImage(
            name=image.file_name,
            image=files.image,
            files=(mask,) if mask else (),
            annotate=files.annotate,
            facts=json.dumps(facts, sort_keys=True).encode(),
        )


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What will be read of one image. `segments`: id → (category, whether it is a crowd)."""

    image: Path
    size: tuple[int, int]
    mask: Path | None
    segments: Mapping[int, tuple[int, bool]]
    classes: Mapping[int, int]
    boxes: Sequence[tuple[float, ...]] | None
    has: frozenset[Annotation]

    def annotate(self, image: np.ndarray, contents: Sequence[bytes]) -> Annotated:
        if image.shape[:2] != self.size:
            (height, width), (told_height, told_width) = image.shape[:2], self.size
            raise InputError(f"{self.image} is {width}×{height}, but its annotation says {told_width}×{told_height}")
        labels = objects = None
        if self.mask:
            channels = decode_rgb_mask(self.mask, contents[0]).astype(np.int32)
            check_same_size(self.mask, channels, self.image, image)
            labels, objects = self._segmented(channels[..., 0] + 256 * channels[..., 1] + 65536 * channels[..., 2])
        return Annotated(
            image,
            labels if "labels" in self.has else None,
            objects if "objects" in self.has else None,
            None if self.boxes is None else self._boxes(),
        )

    def _segmented(self, ids: Int32[np.ndarray, "h w"]) -> tuple[np.ndarray, Objects]:
        """Labels, crowds among them, and objects, without crowds. Id 0 is void."""
        known = np.array([0, *sorted(self.segments)], dtype=np.int32)
        place = np.minimum(np.searchsorted(known, ids), known.size - 1)
        wrong = known[place] != ids
        if wrong.any():
            raise InputError(f"{self.mask} holds segment {int(ids[wrong][0])}, which its JSON file does not list")
        counts = np.bincount(place.ravel(), minlength=known.size)
        if not counts[1:].all():
            raise InputError(
                f"{self.mask} has no pixel of segment {int(known[1:][counts[1:] == 0][0])} of its JSON file"
            )
        label_of, number_of = (np.full(known.size, UNLABELLED, dtype=np.int16) for _ in range(2))
        classes: list[int] = []
        rank = {value: i for i, value in enumerate(known.tolist())}
        for segment, (category, crowd) in self.segments.items():
            label_of[rank[segment]] = self.classes[category]
            if not crowd:
                classes.append(self.classes[category])
                number_of[rank[segment]] = len(classes)
        return label_of[place], Objects(number_of[place], tuple(classes))

    def _boxes(self) -> Float32[np.ndarray, "n 4"]:
        """Boxes as xyxy; COCO has corner, width and height, in pixels from 0."""
        assert self.boxes is not None
        height, width = self.size
        boxes = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        low, high = boxes[:, :2], boxes[:, 2:]
        inside = (low >= -_SLACK).all(1) & (high >= low).all(1) & (high <= np.array([width, height]) + _SLACK).all(1)
        if not inside.all():
            wrong = np.round(boxes[~inside][0], 1).tolist()
            raise InputError(f"{self.image}: its JSON file has a box {wrong} (xyxy) that leaves {width}×{height}")
        return boxes.astype(np.float32)
