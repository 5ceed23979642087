"""COCO's JSON files, checked member by member; polygons are thrown away while they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.artifacts.names import first_problem
from pipeline.foundation.errors import InputError
from train.evals.datasets.decode import read_listed
from train.evals.datasets.lists import require_name

_MOST_ID = 2**24 - 1  # that the three channels of a PNG can hold
_BIG = frozenset({"segmentation"})

T = TypeVar("T")
_Id = Annotated[int, Field(ge=0, le=2**53)]
_Side = Annotated[int, Field(ge=1, le=2**20)]
_Length = Annotated[float, Field(allow_inf_nan=False)]


class CocoImage(NamedTuple):
    """An image, as both files list it."""

    id: int
    file_name: str
    width: int
    height: int


class Segmented(NamedTuple):
    """The PNG of an image, and its segments: id → (category, whether it is a crowd)."""

    file_name: str
    segments: Mapping[int, tuple[int, bool]]


@dataclass(frozen=True, kw_only=True)
class Panoptic:
    """`segments`: by image id."""

    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    segments: Mapping[int, Segmented]


@dataclass(frozen=True, kw_only=True)
class Instances:
    """`boxes`: x, y, width, height by image id, without crowds."""

    images: tuple[CocoImage, ...]
    categories: Mapping[int, str]
    boxes: Mapping[int, Sequence[tuple[float, float, float, float]]]


@dataclass(frozen=True, slots=True)
class _Image:
    id: _Id
    file_name: str
    width: _Side
    height: _Side


@dataclass(frozen=True, slots=True)
class _Category:
    id: _Id
    name: str


@dataclass(frozen=True, slots=True)
class _Instance:
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Length, _Length, _Length, _Length]
    iscrowd: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class _Segment:
    id: Annotated[int, Field(ge=1, le=_MOST_ID)]
    category_id: _Id
    iscrowd: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class _Segments:
    image_id: _Id
    file_name: str
    segments_info: list[_Segment]


@dataclass(frozen=True, slots=True)
class _InstancesFile:
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Instance]


@dataclass(frozen=True, slots=True)
class _PanopticFile:
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Segments]


def read_instances(path: Path) -> Instances:
    """annotations/instances_<list>.json. Raises InputError where it is not one."""
    content = _read(path, TypeAdapter(_InstancesFile))
    images, categories = _images(path, content.images), _categories(path, content.categories)
    known, boxes = {image.id for image in images}, dict[int, list[tuple[float, float, float, float]]]()
    for one in content.annotations:
        _require_known(path, one.image_id, known, "image")
        _require_known(path, one.category_id, categories, "category")
        if not one.iscrowd:
            boxes.setdefault(one.image_id, []).append(one.bbox)
    return Instances(images=images, categories=categories, boxes=boxes)


def read_panoptic(path: Path) -> Panoptic:
    """annotations/panoptic_<list>.json. Raises InputError where it is not one."""
    content = _read(path, TypeAdapter(_PanopticFile))
    images, categories = _images(path, content.images), _categories(path, content.categories)
    found: dict[int, Segmented] = {}
    for one in content.annotations:
        require_name(one.file_name, path=path, below=path.stem)
        segments: dict[int, tuple[int, bool]] = {}
        for segment in one.segments_info:
            _require_known(path, segment.category_id, categories, "category")
            segments[segment.id] = (segment.category_id, bool(segment.iscrowd))
        if one.image_id in found or len(segments) < len(one.segments_info):
            raise InputError(f"{path} has an id twice for image {one.image_id}; replace it")
        found[one.image_id] = Segmented(one.file_name, segments)
    missing = next((image.file_name for image in images if image.id not in found), None)
    if missing:
        raise InputError(f"{path} has no annotation of {missing}; add it, or take the image off")
    return Panoptic(images=images, categories=categories, segments=found)


def _read(path: Path, adapter: TypeAdapter[T]) -> T:
    data = read_listed(path)
    try:
        content = json.loads(data, object_hook=_without_polygons)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); replace it") from None
    try:
        return adapter.validate_python(content, strict=False)
    except ValidationError as error:
        raise InputError(f"{path} is no such file of COCO: {first_problem(error)}; replace it") from None


def _without_polygons(members: dict[str, Any]) -> dict[str, Any]:
    """What is nearly all of a file of instances would take gigabytes of memory."""
    return {key: value for key, value in members.items() if key not in _BIG}


def _images(path: Path, listed: list[_Image]) -> tuple[CocoImage, ...]:
    images = tuple(CocoImage(one.id, one.file_name, one.width, one.height) for one in listed)
    if len({image.id for image in images}) < len(images):
        raise InputError(f"{path} lists an image id twice; remove one")
    return images


def _categories(path: Path, listed: list[_Category]) -> dict[int, str]:
    """Names by id, in the order of ids, which is that of classes."""
    names = {one.id: one.name for one in listed}
    if not names or len(set(names.values())) < len(listed):
        raise InputError(f"{path} must have categories with different ids and names")
    return dict(sorted(names.items()))


def _require_known(path: Path, found: int, known: set[int] | dict[int, str], what: str) -> None:
    if found not in known:
        raise InputError(f"{path}: an annotation is of {what} {found}, which the file does not list; replace it")
