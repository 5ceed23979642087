"""Boxes of VOC's XML files."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np
from jaxtyping import Float32

from pipeline.foundation.errors import InputError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def boxes_of_voc(path: Path, data: bytes, *, size: tuple[int, int]) -> Float32[np.ndarray, "n 4"]:
    """All objects of an image, difficult and truncated ones too, as xyxy with upper ends left out.

    VOC counts pixels from 1, ends included: (xmin − 1, ymin − 1, xmax, ymax), as in LOST's extract_gt_VOC. Parts of an
    object (head, hand) have boxes of their own inside it, which are not read.

    Args:
        size: (height, width) of the image.
    Raises:
        InputError: it is no such XML file, is of another size, or a box lies outside of the image.
    """
    root = _parse(path, data)
    height, width = size
    told = tuple(root.findtext(f"size/{side}") for side in ("height", "width"))
    if told != (None, None) and told != (str(height), str(width)):
        raise InputError(f"{path} is of an image of {told[1]}×{told[0]}, but the image is {width}×{height}")
    boxes = [_box(path, one, height, width) for one in root.findall("object")]
    return np.array(boxes, dtype=np.float32).reshape(-1, 4)


def _box(path: Path, one: ElementTree.Element, height: int, width: int) -> tuple[float, float, float, float]:
    texts = [one.findtext(f"bndbox/{corner}") or "" for corner in _CORNERS]
    try:
        x1, y1, x2, y2 = (float(text) for text in texts)
    except ValueError:
        raise InputError(f"{path}: an object without a whole bndbox ({', '.join(texts)}); put that right") from None
    inside = all(map(math.isfinite, (x1, y1, x2, y2))) and 0 < x1 <= x2 <= width and 0 < y1 <= y2 <= height
    if not inside:
        raise InputError(f"{path}: box {', '.join(texts)} is not inside of {width}×{height}; put that right")
    return x1 - 1, y1 - 1, x2, y2


def _parse(path: Path, data: bytes) -> ElementTree.Element:
    """The root element. A document type is refused, for it can declare entities that grow without end."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise InputError(f"{path} declares a document type, which no annotation needs; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise InputError(f"{path} is not XML ({error}); replace it or take it off the list") from None
    return builder.close()
