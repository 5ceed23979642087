"""What a protocol sees of a folder has one digest, whatever else was read with it."""

from pathlib import Path

import pytest

from train.config.frozen import Annotation, FrozenDataSettings
from train.evals.datasets.open import open_dataset

BOTH = frozenset[Annotation]({"labels", "objects"})


@pytest.mark.parametrize("most", [None, 5])
def test_the_digest_of_an_annotation_is_that_of_opening_it_alone(voc: Path, most: int | None) -> None:
    settings = FrozenDataSettings(max_images=most)
    both = open_dataset(voc, settings, needs=BOTH)
    for need in BOTH:
        alone = open_dataset(voc, settings, needs=frozenset({need}))
        assert alone.train is not None
        assert both.digests[need] == alone.digests[need] == {"val": alone.val.digest, "train": alone.train.digest}


def test_annotations_are_no_part_of_the_digest_of_images_and_images_are(voc: Path) -> None:
    settings = FrozenDataSettings()

    def opened() -> tuple[str, str]:
        val = open_dataset(voc, settings, needs=BOTH).val
        return val.image_digest, val.digest

    before = opened()
    mask = voc / "SegmentationClass" / "013.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    changed = opened()
    assert changed[0] == before[0]
    assert changed[1] != before[1]
    image = voc / "JPEGImages" / "013.jpg"
    image.write_bytes(image.read_bytes() + b" ")
    assert opened()[0] != before[0]
