"""What a protocol of frozen features is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Integer

from pipeline.artifacts.scores import ImageCounts
from train.config.frozen import DataPart, Level, ProtocolSettings
from train.evals.datasets.annotated import DataSet, ImageList
from train.models.frozen import FrozenModel

P = TypeVar("P", bound=ProtocolSettings)


class Clock:
    """Seconds by phase. What a phase inside another takes is the inner one's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = [0.0]  # seconds of the phases inside each that is open

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what runs inside to a phase."""
        start = perf_counter()
        self._inside.append(0.0)
        try:
            yield
        finally:
            total = perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + total - self._inside.pop()
            self._inside[-1] += total


@dataclass(frozen=True, kw_only=True)
class SplitFeatures:
    """Features of the images of one list, in its order; each image was resized to a square as a whole.

    Attributes:
        cells: as they lie on disk, float16 or float32; convert a part at a time. Without cells, (n, 0, 0, 0), for
            protocols that need class ids: they read whole images.
        pooled: one vector an image: the mean of C5, or a ViT's class token.
    """

    images: ImageList
    cells: Float[np.ndarray, "n h w c"]
    pooled: Float32[np.ndarray, "n d"]


# (part, level, size in pixels) → features; each size is one pass over the images, and is done once.
FeatureSource = Callable[[DataPart, Level, int], SplitFeatures]


@dataclass(frozen=True, kw_only=True)
class Task(Generic[P]):
    """One protocol on one backbone with one seed.

    Attributes:
        load_model: the backbone itself, in eval mode on `device`, for protocols that need more than its features.
        num_clusters: K of the run's schedule when these weights were saved; None where they are of no run.
    """

    data: DataSet
    settings: P
    features: FeatureSource
    seed: int
    device: torch.device
    load_model: Callable[[], FrozenModel]
    num_clusters: int | None = None
    clock: Clock = field(default_factory=Clock)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a protocol found.

    Attributes:
        scores: by name, in [0, 1]; None where nothing could be scored. The protocol's headline is one of them.
        per_class: score → class → value.
        per_image: score → what each image adds to it. Has the headline, and `score_of` gives that very score.
        chosen: what was chosen by the data, and sizes that people should know (k, C, memory).
        predict: the predicted label map of an image of `val`, at the size of its annotation; None: none to show.
    """

    scores: Mapping[str, float | None]
    per_image: Mapping[str, ImageCounts]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    chosen: Mapping[str, Any] = field(default_factory=dict)
    predict: Callable[[int], Integer[np.ndarray, "h w"]] | None = None
