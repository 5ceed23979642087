"""Image, truth and prediction of the best, median and worst images of a protocol."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Integer, UInt8
from PIL import Image, ImageDraw

from pipeline.artifacts.scores import ImageCounts
from pipeline.foundation.pictures import VOID, colour_regions, resize_labels, sheet, voc_palette
from train.config.frozen import Annotation
from train.evals.datasets.annotated import UNLABELLED, Annotated, ImageList
from train.evals.segmentation.pictures import TILE, fitted_size

OF_EACH = 3  # images that are shown of the best, of those around the median, and of the worst
UNLABELLED_COLOUR = (224, 224, 192)  # as VOC's void
NOTHING_COLOUR = (40, 40, 40)  # of the truth where there is no object
Predict = Callable[[int], Integer[np.ndarray, "h w"]]


class RankedImages(NamedTuple):
    """Indices of images that have a score, the best first, and the scores of all (NaN without one)."""

    order: list[int]
    scores: Float64[np.ndarray, " n"]


def ranked_images(counts: ImageCounts) -> RankedImages:
    """Images by their own score: value / weight, for "iou" its mean over the classes that weigh anything."""
    value, weight = (np.asarray(one, dtype=float).reshape(len(one), -1) for one in (counts.value, counts.weight))
    counted = weight > 0
    ratio = np.divide(value, weight, out=np.zeros_like(value), where=counted)
    occurring = counted.sum(1)
    scores = np.where(occurring > 0, ratio.sum(1) / np.maximum(occurring, 1), np.nan)
    having = [int(i) for i in np.argsort(-scores, kind="stable") if occurring[i] > 0]
    return RankedImages(having, scores)


def shown_images(order: list[int]) -> list[tuple[str, int]]:
    """Which images are shown: (best, median or worst; index), none of them twice."""
    middle = max(0, (len(order) - OF_EACH) // 2)
    groups = (("best", order[:OF_EACH]), ("median", order[middle : middle + OF_EACH]), ("worst", order[-OF_EACH:]))
    shown: dict[int, str] = {}
    for name, indices in groups:
        for index in indices:
            shown.setdefault(index, name)
    return [(name, index) for index, name in shown.items()]


def scores_sheet(images: ImageList, counts: ImageCounts, predict: Predict, needs: Annotation) -> bytes | None:
    """A PNG with a row an image: image, truth, prediction. None where no image has a score."""
    ranked = ranked_images(counts)
    rows = []
    for name, index in shown_images(ranked.order):
        annotated, predicted = images.read(index), np.asarray(predict(index))
        truth = _truth(annotated, needs)
        size = fitted_size(*annotated.image.shape[:2])
        pixels = np.asarray(Image.fromarray(annotated.image).resize(size[::-1], Image.Resampling.BILINEAR))
        maps = [_painted(resize_labels(one, size), needs, pixels) for one in (truth, predicted)]
        if needs != "labels":
            maps[0][resize_labels(truth, size) == 0] = NOTHING_COLOUR
        rows.append((f"{name} {100 * ranked.scores[index]:.1f}", [pixels, *maps]))
    if not rows:
        return None
    height = max(tiles[0].shape[0] for _, tiles in rows)
    tiles = [[_caption(caption, height), *(_tile(tile, height) for tile in row)] for caption, row in rows]
    buffer = io.BytesIO()
    sheet(tiles, ["own score, %", "image", "truth", "prediction"]).save(buffer, format="PNG")
    return buffer.getvalue()


def _truth(annotated: Annotated, needs: Annotation) -> Integer[np.ndarray, "h w"]:
    """What people have said, as an id a pixel: classes, objects, or boxes, small ones above large ones."""
    if needs == "labels" and annotated.labels is not None:
        return annotated.labels
    if needs == "objects" and annotated.objects is not None:
        return annotated.objects.ids
    drawn = np.zeros(annotated.image.shape[:2], dtype=np.int16)
    boxes = np.zeros((0, 4)) if annotated.boxes is None else np.asarray(annotated.boxes)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for number in np.argsort(-areas, kind="stable"):
        left, top, right, bottom = (round(float(edge)) for edge in boxes[number])
        drawn[top:bottom, left:right] = number + 1
    return drawn


def _painted(
    label_map: Integer[np.ndarray, "h w"], needs: Annotation, image: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Classes in VOC's colours where it has enough of them; ids of regions in others, over the image."""
    known = label_map != UNLABELLED
    ids = np.where(known, label_map, 0)
    has_colours = needs == "labels" and ids.max() < VOID
    painted = voc_palette()[ids] if has_colours else colour_regions(ids, image=image)
    painted[~known] = UNLABELLED_COLOUR
    return painted


def _tile(picture: UInt8[np.ndarray, "h w 3"], height: int) -> UInt8[np.ndarray, "height wide 3"]:
    tile = np.full((height, TILE, 3), 255, dtype=np.uint8)
    tile[: picture.shape[0], : picture.shape[1]] = picture
    return tile


def _caption(text: str, height: int) -> UInt8[np.ndarray, "height wide 3"]:
    tile = Image.new("RGB", (TILE, height), "white")
    ImageDraw.Draw(tile).text((4, 4), text, fill="black")
    return np.asarray(tile)
