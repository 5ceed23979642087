"""COCO against a loop over segments; files that disagree are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import SIZE, opened, write_image, write_json, write_png
from train.evals.datasets.annotated import UNLABELLED

CATEGORIES = [{"id": 90, "name": "sky"}, {"id": 3, "name": "dog"}, {"id": 18, "name": "cat"}]
CLASSES = ("dog", "cat", "sky")  # by id
SEGMENTS = [  # id, category, crowd, rows; 0 … 3 stay void
    (5 + 256 * 7 + 65536 * 9, 90, 0, slice(4, 20)),
    (70000, 3, 0, slice(20, 30)),
    (300, 3, 1, slice(30, 40)),
    (2, 3, 0, slice(40, 48)),
]


def panoptic_ids() -> np.ndarray:
    ids = np.zeros(SIZE, dtype=np.int64)
    for number, _, _, rows in SEGMENTS:
        ids[rows] = number
    return ids


def write_coco(root: Path) -> Path:
    for part, numbers in (("train2017", (1, 2)), ("val2017", (8, 5))):
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 48, "width": 64, "license": 1} for n in numbers]
        segments = [
            {"id": i, "category_id": c, "iscrowd": w, "bbox": [0, 0, 1, 1], "area": 1} for i, c, w, _ in SEGMENTS
        ]
        ids = panoptic_ids()
        for n in numbers:
            write_image(root / part / f"{n:012d}.jpg", n)
            rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
            write_png(root / f"annotations/panoptic_{part}/{n:012d}.png", rgb)
        told = [{"image_id": n, "file_name": f"{n:012d}.png", "segments_info": segments} for n in numbers]
        write_json(
            root / f"annotations/panoptic_{part}.json",
            {"images": images, "categories": CATEGORIES, "annotations": told},
        )
        things = [
            {
                "image_id": numbers[0],
                "category_id": 3,
                "bbox": box,
                "iscrowd": crowd,
                "segmentation": [[1.0] * 8],
                "id": 1,
            }
            for box, crowd in (([1.5, 2, 10, 20.25], 0), ([0, 0, 64, 48], 1), ([54, 0, 10, 48], 0))
        ]
        write_json(
            root / f"annotations/instances_{part}.json",
            {"images": images, "categories": CATEGORIES[1:], "annotations": things},
        )
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def test_labels_objects_and_boxes(coco: Path) -> None:
    data = opened(coco, "labels", "objects", "boxes", "class_id")
    assert (data.layout, data.classes, data.background) == ("coco", CLASSES, None)
    assert (data.has, data.train_has, set(data.lacks)) == ({"labels", "objects", "boxes"}, {"labels"}, {"class_id"})
    assert data.val.names == ("000000000008.jpg", "000000000005.jpg")
    found, ids = data.val.read(0), panoptic_ids()
    assert found.labels is not None
    assert found.objects is not None
    assert found.boxes is not None
    labels, objects = np.full(SIZE, UNLABELLED), np.full(SIZE, UNLABELLED)
    classes = []
    for number, category, crowd, _ in SEGMENTS:
        name = next(c["name"] for c in CATEGORIES if c["id"] == category)
        labels[ids == number] = CLASSES.index(str(name))
        if not crowd:
            classes.append(CLASSES.index(str(name)))
            objects[ids == number] = len(classes)
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.objects.ids, objects)
    assert found.objects.classes == tuple(classes)
    assert found.boxes.tolist() == [[1.5, 2, 11.5, 22.25], [54, 0, 64, 48]]
    np.testing.assert_array_equal(found.image, np.asarray(Image.open(coco / "val2017/000000000008.jpg")))
    nothing = data.val.read(1).boxes
    assert nothing is not None
    assert nothing.shape == (0, 4)
    assert "1 of 2 images of val2017 have no box" in data.notes


def test_only_the_files_that_are_needed_are_read(coco: Path) -> None:
    (coco / "annotations/panoptic_val2017.json").unlink()
    data = opened(coco, "boxes", "labels")
    assert (data.has, data.classes) == ({"boxes"}, ("dog", "cat"))
    assert "panoptic_val2017.json is missing" in data.lacks["labels"]
    (coco / "annotations/panoptic_val2017.json").write_text("not read")
    assert opened(coco, "boxes").has == {"boxes"}
    (coco / "annotations/instances_val2017.json").write_text("not read")
    with pytest.raises(InputError, match=r"panoptic_val2017\.json is not JSON"):
        opened(coco, "labels")


def test_lists_can_be_chosen_and_train_can_be_missing(coco: Path) -> None:
    data = opened(coco, "labels", val_list="train2017", train_list="val2017")
    assert data.train is not None
    assert data.train.names == ("000000000008.jpg", "000000000005.jpg")
    (coco / "train2017").rename(coco / "elsewhere")
    assert opened(coco, "labels").train is None
    with pytest.raises(InputError, match=r"both list 000000000005\.jpg, and 1 more"):
        opened(coco, "labels", train_list="val2017")
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images/val2017")
    assert len(opened(coco, "labels").val.names) == 2


def change(kind: str, edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        path = root / f"annotations/{kind}_val2017.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))

    return apply


def repaint(root: Path, value: int) -> None:
    path = root / "annotations/panoptic_val2017/000000000005.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0] = value
    write_png(path, pixels)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: repaint(root, 4), r"000000000005\.png holds segment 263172, which its JSON file does not list"),
        (
            lambda root: write_png(
                root / "annotations/panoptic_val2017/000000000005.png", np.zeros((48, 64, 3), np.uint8)
            ),
            r"000000000005\.png has no pixel of segment 2 of its JSON file",
        ),
        (
            lambda root: write_png(
                root / "annotations/panoptic_val2017/000000000005.png", np.zeros((48, 60, 3), np.uint8)
            ),
            r"000000000005\.png is 60×48, but 000000000005\.jpg is 64×48",
        ),
        (
            lambda root: write_image(root / "val2017/000000000005.jpg", 0, (48, 60)),
            r"000000000005\.jpg is 60×48, but its annotation says 64×48",
        ),
        (lambda root: (root / "val2017/000000000005.jpg").unlink(), r"000000000005\.jpg is listed, but cannot be read"),
        (
            change("panoptic", lambda c: c["images"][0].update(file_name="../8.jpg")),
            r"no name below val2017|do not list",
        ),
        (
            change("panoptic", lambda c: c["annotations"][0].update(file_name="/8.png")),
            "no name below panoptic_val2017",
        ),
        (change("panoptic", lambda c: c["annotations"].pop()), r"no annotation of 000000000005\.jpg"),
        (change("panoptic", lambda c: c["categories"].pop(1)), "an annotation is of category 3"),
        (change("panoptic", lambda c: c["images"].pop()), r"do not list the same 000000000005\.jpg"),
        (change("panoptic", lambda c: c["annotations"][0]["segments_info"].append(None)), "no such file of COCO"),
        (
            change(
                "panoptic",
                lambda c: c["annotations"][0]["segments_info"].append(c["annotations"][0]["segments_info"][0]),
            ),
            "an id twice for image 8",
        ),
        (change("panoptic", lambda c: c["categories"].append({"id": 4, "name": "dog"})), "different ids and names"),
        (
            change("instances", lambda c: c["annotations"][0].update(bbox=[0, 0, 70, 10])),
            r"has a box \[.*\] \(xyxy\) that",
        ),
        (change("instances", lambda c: c["annotations"][0].update(bbox=[0, 0, -1, 10])), "has a box"),
        (
            change("instances", lambda c: c["annotations"][0].update(bbox=[0, 0, float("nan"), 1])),
            r"annotations\.0\.bbox",
        ),
        (change("instances", lambda c: c["annotations"][0].update(image_id=77)), "an annotation is of image 77"),
        (change("instances", lambda c: c["images"].append(c["images"][0])), "lists an image id twice"),
        (change("instances", lambda c: c.pop("images")), "no such file of COCO: images"),
    ],
)
def test_files_that_disagree_are_named(coco: Path, break_it: Callable[[Path], None], message: str) -> None:
    break_it(coco)
    with pytest.raises(InputError, match=message) as caught:
        opened(coco, "labels", "objects", "boxes")
    assert "\n" not in str(caught.value)


def test_what_json_says_is_part_of_the_digest(coco: Path) -> None:
    before = opened(coco, "boxes").val.digest
    change("instances", lambda c: c["annotations"][0].update(bbox=[1.5, 2, 10, 20]))(coco)
    assert opened(coco, "boxes").val.digest != before
    before = opened(coco, "labels").val.digest
    change("panoptic", lambda c: c["annotations"][0]["segments_info"][0].update(category_id=18))(coco)
    assert opened(coco, "labels").val.digest != before
