"""Boxes of VOC's XML files, and files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.foundation.errors import InputError
from tests.train.evals.datasets.small_folders import opened, write_voc_like
from train.evals.datasets.layouts.voc_boxes import boxes_of_voc

PATH = Path("a.xml")
HEAD = "<annotation><size><width>64</width><height>48</height><depth>3</depth></size>"
PART = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>4</xmax><ymax>4</ymax></bndbox></part>"


def thing(*corners: object, more: str = "") -> str:
    names = ("ymin", "xmin", "xmax", "ymax")  # VOC has them in more than one order
    x1, y1, x2, y2 = corners
    box = "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, (y1, x1, x2, y2), strict=True))
    return f"<object><name>dog</name>{more}<bndbox>{box}</bndbox></object>"


def read(*things: str, head: str = HEAD) -> np.ndarray:
    return boxes_of_voc(PATH, f"{head}{''.join(things)}</annotation>".encode(), size=(48, 64))


def test_boxes_count_pixels_from_0_with_upper_ends_left_out() -> None:
    found = read(
        thing(1, 1, 64, 48), thing(5, 6, 7.5, 8, more="<difficult>1</difficult><truncated>1</truncated>" + PART)
    )
    assert found.tolist() == [[0, 0, 64, 48], [4, 5, 7.5, 8]]
    assert found.dtype == np.float32
    assert read().shape == (0, 4)
    assert read(thing(1, 1, 2, 2), head="<annotation>").shape == (1, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}{thing(0, 1, 2, 2)}</annotation>", "box 0, 1, 2, 2 is not inside of 64×48"),
        (f"{HEAD}{thing(1, 1, 65, 2)}</annotation>", "is not inside of 64×48"),
        (f"{HEAD}{thing(5, 1, 4, 2)}</annotation>", "is not inside"),
        (f"{HEAD}{thing(1, 1, 'nan', 2)}</annotation>", "is not inside"),
        (f"{HEAD}{thing(1, 1, 'x', 2)}</annotation>", "without a whole bndbox"),
        (f"{HEAD}<object/></annotation>", "without a whole bndbox"),
        (HEAD.replace("64", "500") + "</annotation>", "is of an image of 500×48, but the image is 64×48"),
        (HEAD, "is not XML"),
        ("", "is not XML"),
        (f"<!DOCTYPE annotation>{HEAD}</annotation>", "declares a document type"),
        (f'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;">]>{HEAD}</annotation>', "declares a document type"),
    ],
)
def test_what_is_no_such_file_is_named(text: str, message: str) -> None:
    for encoding in ("utf-8", "utf-16"):
        with pytest.raises(InputError, match=rf"a\.xml.*{message}") as caught:
            boxes_of_voc(PATH, text.encode(encoding), size=(48, 64))
        assert "\n" not in str(caught.value)


def test_boxes_of_a_folder(tmp_path: Path) -> None:
    root = write_voc_like(tmp_path)
    assert "Annotations is missing" in opened(root, "boxes", "labels").lacks["boxes"]
    (root / "Annotations").mkdir()
    with pytest.raises(InputError, match=r"Annotations/a2\.xml is listed, but cannot be read"):
        opened(root, "boxes")
    for name in ("a2", "a3"):
        (root / "Annotations" / f"{name}.xml").write_text(
            f"{HEAD}{thing(1, 2, 3, 4) if name == 'a2' else ''}</annotation>"
        )
    data = opened(root, "boxes")
    assert (data.has, data.train_has) == ({"boxes"}, frozenset())
    found = data.val.read(0)
    assert found.boxes is not None
    assert found.boxes.tolist() == [[0, 1, 3, 4]]
    assert found.labels is None
    assert "1 of 2 images of val have no box" in data.notes
    (root / "Annotations" / "a2.xml").write_text(f"{HEAD}</annotation>")
    with pytest.raises(InputError, match="none of 2 images has a box"):
        opened(root, "boxes")
