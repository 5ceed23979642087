"""ImageNet-S: R + 256·G, 1000 left out, 0 none of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import opened, write_image, write_png
from train.evals.datasets.annotated import UNLABELLED

SIZE = (6, 8)
WNIDS = [f"n{i:08d}" for i in range(300)]


def write_mask(path: Path, ids: np.ndarray, blue: int = 0) -> None:
    write_png(path, np.stack([ids % 256, ids // 256, np.full_like(ids, blue)], axis=-1).astype(np.uint8))


@pytest.fixture
def imagenet_s(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("\n".join(WNIDS))
    for i in (0, 299):
        for part in ("validation", "train-semi"):
            write_image(tmp_path / part / WNIDS[i] / f"{part}_{i}.JPEG", i, SIZE)
            ids = np.full(SIZE, i + 1)
            ids[:2], ids[2, 0] = 0, 1000
            write_mask(tmp_path / f"{part}-segmentation" / WNIDS[i] / f"{part}_{i}.png", ids)
    return tmp_path


def test_ids_are_red_and_green(imagenet_s: Path) -> None:
    data = opened(imagenet_s, "labels", "objects", "class_id", "boxes")
    assert (data.layout, data.background, data.classes) == ("imagenet_s", 0, ("other", *WNIDS))
    assert (data.has, set(data.lacks)) == ({"labels", "objects", "class_id"}, {"boxes"})
    assert data.train_has == {"labels", "class_id"}
    assert data.train is not None
    assert data.train.names[0] == f"train-semi/{WNIDS[0]}/train-semi_0.JPEG"
    for index, class_id in enumerate((1, 300)):
        found = data.val.read(index)
        assert found.labels is not None
        assert found.objects is not None
        assert found.class_id == class_id
        expected = np.full(SIZE, class_id)
        expected[:2], expected[2, 0] = 0, UNLABELLED
        np.testing.assert_array_equal(found.labels, expected)
        assert found.objects.classes == (class_id,)
        np.testing.assert_array_equal(found.objects.ids == 1, expected == class_id)


def test_classes_are_the_folders_where_all_are_there(imagenet_s: Path) -> None:
    (imagenet_s / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"validation has 2 class folders, not 50, 300 or 919.*classes\.txt"):
        opened(imagenet_s, "class_id")
    for wnid in WNIDS[1:49]:
        (imagenet_s / "validation" / wnid).mkdir()
    data = opened(imagenet_s, "class_id")
    assert data.classes == ("other", *WNIDS[:49], WNIDS[299])
    assert [data.val.read(i).class_id for i in range(2)] == [1, 50]
    (imagenet_s / "classes.txt").write_text("\n".join(WNIDS[:299]))
    with pytest.raises(InputError, match="n00000299 is none of the 299 classes"):
        opened(imagenet_s, "labels")


def test_masks_that_are_none_are_named(imagenet_s: Path) -> None:
    path = imagenet_s / "validation-segmentation" / WNIDS[299] / "validation_299.png"
    for ids, blue, message in (
        (np.full(SIZE, 301), 0, r"holds class id 301, but ids must be 0 … 300 or 1000 \(void\)"),
        (np.full(SIZE, 3), 1, "its blue channel is not 0"),
        (np.full((6, 7), 3), 0, r"validation_299\.png is 7×6, but validation_299\.JPEG is 8×6"),
    ):
        write_mask(path, ids, blue)
        with pytest.raises(InputError, match=message):
            opened(imagenet_s, "labels")
    write_png(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(InputError, match="ids of this layout are written as RGB"):
        opened(imagenet_s, "labels")
    path.unlink()
    with pytest.raises(InputError, match="is listed, but cannot be read"):
        opened(imagenet_s, "labels")
    assert opened(imagenet_s, "class_id").has == {"class_id"}
    with pytest.raises(InputError, match="no-such: no such folder"):
        opened(imagenet_s, "labels", train_list="no-such")
