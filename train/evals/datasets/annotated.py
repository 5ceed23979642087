"""Images and what people have said of them, whatever the layout of the folder that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int16, UInt8

from train.config.frozen import Annotation, DataPart

# Of pixels that count neither for nor against anybody. Layouts write 255, 1000 or 0 for it; classes stay below it.
UNLABELLED = int(np.iinfo(np.int16).max)


class Objects(NamedTuple):
    """The objects of an image: `ids` per pixel, and the class of object i at `classes[i - 1]`.

    An id is 1 … n, 0 where there is no object, and UNLABELLED where nobody knows.
    """

    ids: Int16[np.ndarray, "h w"]
    classes: tuple[int, ...]


class Annotated(NamedTuple):
    """One image with the annotations that its data set has; the others are None.

    `labels`: the class of each pixel, or UNLABELLED. `boxes`: of objects, xyxy in pixels, upper ends left out.
    """

    image: UInt8[np.ndarray, "h w 3"]
    labels: Int16[np.ndarray, "h w"] | None = None
    objects: Objects | None = None
    boxes: Float[np.ndarray, "n 4"] | None = None
    class_id: int | None = None


class ImageList(Protocol):
    """The images of one list in its order.

    `names` are unique. `digest` is the hex SHA-256 of all names and of the content of every file. `image_digest` is
    that of names and images, without annotations.
    """

    @property
    def names(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def digest(self) -> str: ...  # noqa: D102

    @property
    def image_digest(self) -> str: ...  # noqa: D102

    def read(self, index: int) -> Annotated:
        """One image. Raises InputError where its files have changed since the list was opened."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A folder of annotated images, every file of which has been read and checked.

    Attributes:
        layout: which reader opened it.
        classes: names by class id.
        background: the id of the class that is no object; None where every class is one.
        has: the annotations that every image of `val` has.
        train: what a protocol may fit on; None where the folder has no such part.
        val: what is scored.
        train_has: as `has`, of `train`.
        notes: what results must say of it, such as which split was taken.
        lacks: of annotations that it has not, how to come by them.
        digests: annotation → part → as `ImageList.digest`, of the images and that annotation alone.
    """

    layout: str
    root: Path
    classes: tuple[str, ...]
    background: int | None
    has: frozenset[Annotation]
    val: ImageList
    train: ImageList | None = None
    train_has: frozenset[Annotation] = frozenset()
    notes: tuple[str, ...] = ()
    lacks: Mapping[Annotation, str] = field(default_factory=dict)
    digests: Mapping[Annotation, Mapping[DataPart, str]] = field(default_factory=dict)
