"""Which layout a folder has, which images are taken, and that no file changes unseen."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import (
    opened,
    palette_png,
    voc_mask,
    write_image,
    write_list,
    write_voc_like,
)

DATA = Path(os.environ.get("R2O_TEST_DATA", "none"))  # real folders, where somebody has them


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc_like(tmp_path / "VOC2012", count=14)


def test_a_folder_of_no_layout_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no layout that is known .*voc: JPEGImages; coco: annotations"):
        opened(tmp_path, "labels")
    with pytest.raises(InputError, match="none: no such folder"):
        opened(tmp_path / "none", "labels")


def test_a_folder_of_two_layouts_is_asked_about(voc: Path) -> None:
    (voc / "images.txt").write_text("1 a.jpg\n")
    with pytest.raises(InputError, match=r"could be voc or cub; say which by eval_frozen\.data\.layout"):
        opened(voc, "labels")
    assert opened(voc, "labels", layout="voc").layout == "voc"
    with pytest.raises(InputError, match=r"VOC2012/train_test_split\.txt cannot be read"):
        opened(voc, "labels", layout="cub")


@pytest.mark.parametrize(("key", "value"), [("split", Path("a")), ("first_class_id", 1)])
def test_settings_of_other_layouts_are_refused(voc: Path, key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"eval_frozen\.data\.{key}: layout voc has no use for it"):
        opened(voc, "labels", **{key: value})


@pytest.mark.parametrize(("most", "numbers"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5])])
def test_images_are_evenly_spaced(voc: Path, most: int, numbers: list[int]) -> None:
    data = opened(voc, "labels", max_images=most)
    assert data.train is not None
    assert data.val.names == tuple(f"a{7 + i}" for i in numbers)
    assert data.train.names == tuple(f"a{i}" for i in numbers)
    assert f"{most} of 7 images of val, evenly spaced" in data.notes
    assert opened(voc, "labels", max_images=7).val.digest == opened(voc, "labels").val.digest


def test_the_digest_is_of_all_names_facts_and_files(voc: Path) -> None:
    def digest_of(needs: bool) -> str:
        digest = hashlib.sha256()
        for name in (f"a{i}" for i in range(7, 14)):
            parts = [name.encode(), b"", (voc / f"JPEGImages/{name}.jpg").read_bytes()]
            parts += [(voc / f"SegmentationClass/{name}.png").read_bytes()] if needs else []
            for part in parts:
                digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    assert opened(voc, "labels").val.digest == digest_of(True)
    assert opened(voc, "boxes").val.digest == digest_of(False)


@pytest.mark.parametrize("which", ["JPEGImages/a9.jpg", "SegmentationClass/a9.png"])
def test_every_byte_and_the_order_decide_the_digest(voc: Path, which: str) -> None:
    before = opened(voc, "labels").val.digest
    path = voc / which
    path.write_bytes(path.read_bytes() + b"\0")  # after the end of the picture
    assert opened(voc, "labels").val.digest != before
    path.write_bytes(path.read_bytes()[:-1])
    assert opened(voc, "labels").val.digest == before
    write_list(voc, "val", [f"a{i}" for i in (8, 7, *range(9, 14))])
    assert opened(voc, "labels").val.digest != before


@pytest.mark.parametrize("which", ["image", "mask"])
def test_files_that_change_after_the_check_are_found(voc: Path, which: str) -> None:
    val = opened(voc, "labels").val
    assert val.read(2).labels is not None
    if which == "image":
        write_image(voc / "JPEGImages/a9.jpg", 99)
    else:
        (voc / "SegmentationClass/a9.png").write_bytes(palette_png(voc_mask(1)))
    with pytest.raises(InputError, match=r"a9\.jpg or its annotation changed since it was first read; run the same"):
        val.read(2)
    np.testing.assert_array_equal(val.read(1).labels == 9, voc_mask(8) == 9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "layout", "needs", "counts"),
    [
        ("VOC2012_small", "voc", ("labels", "objects"), (223, 3131)),
        ("VOCdevkit", "voc", ("labels", "objects"), (223, 437)),
        ("coco", "coco", ("labels", "objects", "boxes"), (30, 40)),
        ("weizmann_horse_cub_layout", "cub", ("objects",), (120, None)),
        ("camvid_cityscapes_layout", "cityscapes", ("labels",), (15, 30)),
        ("imagenet1k_sample", "classes", ("class_id",), (175, None)),
    ],
)
def test_real_folders(name: str, layout: str, needs: tuple[str, ...], counts: tuple[int, int | None]) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name}")
    data = opened(DATA / name, *needs)  # type: ignore[arg-type]
    assert (data.layout, set(data.has)) == (layout, set(needs))
    assert (len(data.val.names), data.train and len(data.train.names)) == counts
