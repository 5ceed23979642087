"""What a layout says that a folder holds, before any image of it has been read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from train.config.frozen import Annotation, DataPart
from train.evals.datasets.annotated import Annotated

# (decoded image, bytes of the entry's `files`) → the image with its annotations. Raises InputError.
Annotate = Callable[[UInt8[np.ndarray, "h w 3"], Sequence[bytes]], Annotated]


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """One image, and where its annotations are.

    Attributes:
        name: unique in its list, and the same in another list of the folder.
        files: that annotate it, and it alone.
        facts: what files of the whole folder say of it, such as its class or its boxes; part of the digest.
    """

    name: str
    image: Path
    annotate: Annotate
    files: tuple[Path, ...] = ()
    facts: bytes = b""


@dataclass(frozen=True, kw_only=True)
class FoundPart:
    """The images that are for fitting, or those that are scored.

    Attributes:
        title: the list as people know it, for messages and notes.
        where: the file or folder that decides which images these are.
        has: the annotations that `ListedImage.annotate` gives.
    """

    part: DataPart
    title: str
    where: Path
    entries: tuple[ListedImage, ...]
    has: frozenset[Annotation]


@dataclass(frozen=True, kw_only=True)
class FoundData:
    """A folder of a known layout. `lacks` has no annotation that `val.has` has."""

    root: Path
    classes: tuple[str, ...]
    background: int | None
    val: FoundPart
    train: FoundPart | None = None
    notes: tuple[str, ...] = ()
    lacks: Mapping[Annotation, str] = field(default_factory=dict)
