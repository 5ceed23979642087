"""A list of images in memory: photographs of a kind, grey ones, one of a single row of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from train.config.frozen import Annotation
from train.evals.datasets.annotated import Annotated, DataSet

SHAPES = ((40, 60), (1, 500), (64, 64), (90, 30), (33, 47))


def made_image(index: int) -> np.ndarray:
    rng = np.random.default_rng(index)
    height, width = SHAPES[index % len(SHAPES)]
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((25, 150, 1)))[:height, :width].astype(np.uint8)
    return np.repeat(pixels[..., :1], 3, axis=2) if index % 4 == 3 else pixels


@dataclass
class MadeImages:
    """Half of each image is of a class; the class of the image is its place modulo 2."""

    count: int = 10
    salt: int = 0
    names: tuple[str, ...] = ()
    was_read: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = tuple(f"image-{self.salt}-{i}" for i in range(self.count))

    @property
    def digest(self) -> str:
        return f"labels of {self.count} {self.salt}"

    @property
    def image_digest(self) -> str:
        return f"{self.count} {self.salt}"

    def read(self, index: int) -> Annotated:
        self.was_read.append(index)
        image = made_image(index + 100 * self.salt)
        labels = np.zeros(image.shape[:2], dtype=np.int16)
        labels[:, image.shape[1] // 2 :] = 1
        return Annotated(image=image, labels=labels, class_id=index % 2)


def made_data(root, *, has: Sequence[Annotation] = ("labels",), train: int = 6, val: int = 10) -> DataSet:  # type: ignore[no-untyped-def]
    parts = {"val": MadeImages(val), "train": MadeImages(train, salt=1)}
    return DataSet(
        layout="made",
        root=root,
        classes=("left", "right"),
        background=None,
        has=frozenset(has),
        val=parts["val"],
        train=parts["train"],
        train_has=frozenset(has),
        lacks={"boxes": "draw some"},
        digests={need: {name: part.digest for name, part in parts.items()} for need in has},
    )
