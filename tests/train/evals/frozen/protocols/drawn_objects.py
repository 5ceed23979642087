"""Data sets and features that a test draws itself, as protocols are given them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.config.frozen import ProtocolSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated, DataSet, Objects
from train.evals.frozen.protocol import SplitFeatures, Task
from train.models.frozen import FrozenFeatures, FrozenModel


class DrawnImages:
    """Images of which tests know everything."""

    def __init__(
        self, ids: Sequence[np.ndarray], classes: Sequence[tuple[int, ...]], names: Sequence[str] = ()
    ) -> None:
        self._objects = [Objects(one.astype(np.int16), of) for one, of in zip(ids, classes, strict=True)]
        self.names = tuple(names) or tuple(f"drawn{i}" for i in range(len(ids)))
        self.digest = self.image_digest = "0" * 64

    def read(self, index: int) -> Annotated:
        rng = np.random.default_rng(index)
        height, width = self._objects[index].ids.shape
        return Annotated(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), objects=self._objects[index])


def task_of(
    settings: ProtocolSettings, images: DrawnImages, cells: np.ndarray, *, num_classes: int = 3, **more: Any
) -> Task[Any]:
    """A task on these images, whose features are `cells` (n, h, w, c)."""
    data = DataSet(
        layout="drawn",
        root=Path("/nowhere"),
        classes=tuple(f"class{i}" for i in range(num_classes)),
        background=0,
        has=frozenset({"objects"}),
        val=images,
    )

    def features(part: str, level: str, size: int) -> SplitFeatures:
        assert (part, level, size) == ("val", settings.level, settings.size)
        return SplitFeatures(images=images, cells=cells, pooled=cells.mean((1, 2)).astype(np.float32))

    given = {"seed": 0, "device": torch.device("cpu"), "load_model": FrozenModel, **more}
    return Task(data=data, settings=settings, features=features, **given)


def random_ids(rng: np.random.Generator, *, objects: int) -> np.ndarray:
    """An annotation of uneven size, with void."""
    choices = np.array([*range(objects + 1), UNLABELLED], np.int16)
    height, width = (int(v) for v in rng.integers(5, 30, 2))
    blocks = rng.choice(choices, (4, 5))
    return blocks.repeat(-(-height // 4), 0)[:height].repeat(-(-width // 5), 1)[:, :width]


class ConvolvedModel(FrozenModel):
    """One convolution of stride 16 and a batch norm whose running statistics have been somewhere."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), mean=(0, 0, 0), std=(1, 1, 1))
        generator = torch.Generator().manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 6, 16, 16)
        self.conv.weight.data = torch.randn(self.conv.weight.shape, generator=generator)
        self.norm = torch.nn.BatchNorm2d(6)
        self.norm.running_mean.copy_(torch.randn(6, generator=generator))
        self.eval()

    def forward(self, images: torch.Tensor) -> FrozenFeatures:
        c4 = self.norm(self.conv(images.float() / 255))
        return FrozenFeatures(c4, c4[:, :, ::2, ::2], c4.mean((2, 3)))
