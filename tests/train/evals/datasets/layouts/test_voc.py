"""VOC: what is read against the files themselves, and every oddity either read rightly or named in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import (
    SIZE,
    encoded,
    opened,
    palette_png,
    picture,
    png_of,
    voc_mask,
    write_list,
    write_png,
    write_voc_like,
)
from train.evals.datasets.annotated import UNLABELLED
from train.evals.segmentation.voc_folder import VOC_CLASSES, VocFolder

NAMES = [f"a{i}" for i in range(4)]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc_like(tmp_path / "VOCdevkit" / "VOC2012")


def labels_of(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == 255, UNLABELLED, ids.astype(int))


def rewrite(root: Path, make: Callable[[np.ndarray], bytes]) -> None:
    for i, name in enumerate(NAMES):
        (root / "SegmentationClass" / f"{name}.png").write_bytes(make(voc_mask(i)))


@pytest.mark.parametrize("above", [0, 1, 2])
def test_labels_and_objects_are_those_of_the_masks(voc: Path, above: int) -> None:
    data = opened([voc, *voc.parents][above], "labels", "objects")
    assert (data.layout, data.root, data.classes, data.background) == ("voc", voc, VOC_CLASSES, 0)
    assert (data.has, data.train_has, dict(data.lacks)) == ({"labels", "objects"}, {"labels"}, {})
    assert data.train is not None
    assert (data.train.names, data.val.names) == (("a0", "a1"), ("a2", "a3"))
    for index, number in enumerate((2, 3)):
        found, mask = data.val.read(index), voc_mask(number)
        np.testing.assert_array_equal(found.image, np.asarray(Image.open(voc / f"JPEGImages/a{number}.jpg")))
        assert found.labels is not None
        assert found.objects is not None
        np.testing.assert_array_equal(found.labels, labels_of(mask))
        assert found.objects.classes == (number + 1, 20)
        for i, label in enumerate(found.objects.classes):
            np.testing.assert_array_equal(found.objects.ids == i + 1, mask == label)
        np.testing.assert_array_equal(found.objects.ids == UNLABELLED, mask == 255)
        assert (found.boxes, found.class_id) == (None, None)
    assert data.train.read(0).objects is None


def test_what_is_not_needed_is_not_read(voc: Path) -> None:
    for path in (voc / "SegmentationClass").iterdir():
        path.unlink()
    data = opened(voc, "class_id")
    assert data.has == frozenset()
    assert data.val.read(0).labels is None
    assert "class folders" in data.lacks["class_id"]
    with pytest.raises(InputError, match=r"SegmentationClass/a2\.png is listed, but cannot be read"):
        opened(voc, "labels")


def test_augmented_masks_and_their_list_are_taken_where_they_are(tmp_path: Path) -> None:
    root = write_voc_like(tmp_path, masks="SegmentationClassAug")
    write_list(root, "trainaug", ["a0"])
    data = opened(root, "labels")
    assert data.train is not None
    assert (data.train.names, data.val.names) == (("a0",), ("a2", "a3"))
    assert data.notes[0] == "train is list trainaug with masks of SegmentationClassAug"
    assert data.notes[1] == "val is list val with masks of SegmentationClassAug"
    write_voc_like(tmp_path)  # now SegmentationClass too: for val it is the better one
    assert [note.split()[-1] for note in opened(root, "labels").notes] == ["SegmentationClassAug", "SegmentationClass"]
    for path in (root / "SegmentationClassAug").iterdir():
        path.unlink()
    (root / "SegmentationClassAug").rmdir()
    assert opened(root, "labels").notes[0] == "train is list train with masks of SegmentationClass"


def test_lists_and_masks_can_be_chosen(voc: Path) -> None:
    (voc / "SegmentationClass").rename(voc / "Other")
    (voc / "ImageSets" / "Main").mkdir()
    (voc / "ImageSets/Main/all.txt").write_text("a3\na2\n")
    data = opened(voc, "labels", train_masks="Other", val_masks="Other", val_list="Main/all")
    assert data.val.names == ("a3", "a2")
    assert "SegmentationClass is missing" in opened(voc, "labels").lacks["labels"]


def test_instances_are_objects_where_that_is_asked_for(voc: Path) -> None:
    for name in NAMES:
        ids = np.zeros(SIZE, dtype=np.uint8)
        ids[8:30, 10:20], ids[8:30, 20:40], ids[30:32, 10:40] = 2, 1, 255
        (voc / "SegmentationObject").mkdir(exist_ok=True)
        (voc / "SegmentationObject" / f"{name}.png").write_bytes(palette_png(ids))
    found = opened(voc, "objects", objects="instances").val.read(0)
    assert found.objects is not None
    assert found.objects.classes == (3, 3)
    assert [int((found.objects.ids == i).sum()) for i in (1, 2)] == [22 * 20, 22 * 10]
    assert found.labels is None
    write_png(voc / "SegmentationObject" / "a3.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match=r"SegmentationObject/a3\.png is 4×3, but a3\.jpg is 64×48"):
        opened(voc, "objects", objects="instances")


@pytest.mark.parametrize(
    ("lines", "end", "start"),
    [
        (NAMES, " \r\n", ""),
        (NAMES, "\n", "\ufeff"),
        ([f"{name}.jpg" for name in NAMES], "\n", ""),
        ([f"/JPEGImages/{name}.jpg /SegmentationClass/{name}.png" for name in NAMES], "\n", ""),
        ([f"JPEGImages/{name}.jpg\tSegmentationClass/{name}.png" for name in NAMES], "\n", ""),
    ],
)
def test_lists_of_other_forms_are_the_same_list(voc: Path, lines: list[str], end: str, start: str) -> None:
    plain = opened(voc, "labels")
    write_list(voc, "train", lines[:2], end=end, start=start)
    write_list(voc, "val", lines[2:], end=end, start=start)
    data = opened(voc, "labels")
    assert data.val.names == plain.val.names
    assert data.val.digest == plain.val.digest
    assert VocFolder.open(voc).names("val") == ["a2", "a3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a2  1", r"val\.txt: 'a2  1' is a name and a flag, as in ImageSets/Main"),
        ("/JPEGImages/a2.jpg /SegmentationClassAug/a2.png", r"names another mask than /SegmentationClass/a2\.png"),
        ("/JPEGImages/a2.jpg /SegmentationClass/a3.png", r"names another mask than /SegmentationClass/a2\.png"),
        ("/JPEGImages/../a2.jpg /SegmentationClass/../a2.png", "which is no name below JPEGImages"),
        ("a3", "lists a3 twice"),
        ("a1", r"train\.txt and .*val\.txt: both list a1; what is scored must not be fitted on"),
        ("none", r"none\.jpg is listed, but cannot be read"),
    ],
)
def test_lines_that_could_mean_something_else_are_named(voc: Path, line: str, message: str) -> None:
    write_list(voc, "val", [line, "a3"])
    with pytest.raises(InputError, match=message) as caught:
        opened(voc, "labels")
    assert "\n" not in str(caught.value)


def test_a_list_for_boxes_may_hold_the_images_of_train(voc: Path) -> None:
    write_list(voc, "val", ["a1", "a2"])
    assert opened(voc, "objects").val.names == ("a1", "a2")  # nothing is fitted


@pytest.mark.parametrize("suffix", [".JPEG", ".jpeg", ".png", ".PNG"])
def test_images_have_any_of_their_usual_suffixes(voc: Path, suffix: str) -> None:
    digest = opened(voc, "labels").val.digest
    for name in NAMES:
        (voc / f"JPEGImages/{name}.jpg").rename(voc / f"JPEGImages/{name}{suffix}")
    assert opened(voc, "labels").val.digest == digest
    (voc / f"JPEGImages/a3{suffix}").write_bytes(encoded(picture(9), "PNG"))
    np.testing.assert_array_equal(opened(voc, "labels").val.read(1).image, picture(9))


@pytest.mark.parametrize("depth", [2, 4])
def test_low_depths_are_read_as_they_are_stored(voc: Path, depth: int) -> None:
    rewrite(voc, lambda ids: png_of(np.minimum(ids, 2**depth - 1), depth=depth))
    data = opened(voc, "labels")
    np.testing.assert_array_equal(data.val.read(0).labels, np.minimum(voc_mask(2), 2**depth - 1))
    np.testing.assert_array_equal(VocFolder.open(voc).split("val")[0].labels, np.minimum(voc_mask(2), 2**depth - 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda ids: encoded(np.dstack([ids] * 3), "PNG"), "of class ids, not RGB"),
        (lambda ids: encoded(np.dstack([ids] * 4), "PNG"), "of class ids, not RGBA"),
        (lambda ids: png_of(ids.astype(np.uint16), depth=16), "of class ids, not 16-bit grey"),
        (lambda ids: png_of((ids > 0).astype(np.uint8), depth=1), "can name 2 classes, and there are 21"),
        (lambda ids: encoded(ids), "is a JPEG, and JPEG changes ids"),
        (lambda ids: palette_png(np.where(ids == 3, 24, ids).astype(np.uint8)), "class id 24, but ids must be 0 … 20"),
        (lambda ids: palette_png(ids[::2, ::2]), r"a2\.png is 32×24, but a2\.jpg is 64×48"),
        (
            lambda ids: encoded(np.where(ids > 0, 255, 0).astype(np.uint8), "PNG"),
            "SegmentationClass: none of 2 masks shows a class, .*255 is void, so masks of 0 and 255 show nothing",
        ),
    ],
)
def test_masks_that_are_none_are_named(voc: Path, make: Callable[[np.ndarray], bytes], message: str) -> None:
    rewrite(voc, make)
    for attempt in (lambda: opened(voc, "labels"), lambda: VocFolder.open(voc).split("val")):
        with pytest.raises(InputError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        opened(voc, "objects")


def test_two_classes_can_be_told_apart_by_one_bit(voc: Path) -> None:
    (voc / "classes.txt").write_text("background\nthing\n")
    rewrite(voc, lambda ids: png_of((ids > 0).astype(np.uint8), depth=1))
    np.testing.assert_array_equal(opened(voc, "labels").val.read(0).labels, voc_mask(2) > 0)


def test_classes_without_a_background_are_named(voc: Path) -> None:
    (voc / "classes.txt").write_text("aeroplane\nbicycle\nbird\n")
    with pytest.raises(InputError, match=r"classes\.txt begins with aeroplane, but id 0 is the background"):
        opened(voc, "labels")


def test_some_images_without_foreground_are_counted(voc: Path) -> None:
    (voc / "SegmentationClass/a3.png").write_bytes(palette_png(np.zeros(SIZE, np.uint8)))
    notes = opened(voc, "labels", "objects").notes
    assert "1 of 2 images of val have no pixel of a class but the background" in notes
    assert "1 of 2 images of val have no object" in notes


def test_a_folder_without_train_is_scored_alone(voc: Path) -> None:
    (voc / "ImageSets/Segmentation/train.txt").unlink()
    data = opened(voc, "labels")
    assert (data.train, data.train_has) == (None, frozenset())
    with pytest.raises(InputError, match=r"train\.txt cannot be read"):
        opened(voc, "labels", train_list="train")
