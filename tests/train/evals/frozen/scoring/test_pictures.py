"""Which images are shown, in which order, and what is drawn."""

import io
from typing import Any

import numpy as np
from PIL import Image

from pipeline.artifacts.scores import ImageCounts
from pipeline.foundation.pictures import CAPTION_HEIGHT, MARGIN, voc_palette
from train.evals.datasets.annotated import UNLABELLED, Annotated
from train.evals.frozen.scoring.pictures import ranked_images, scores_sheet, shown_images
from train.evals.segmentation.pictures import TILE


def test_images_are_ranked_by_their_own_mean_over_classes_that_occur() -> None:
    value = np.array([[1.0, 0.0], [3.0, 5.0], [0.0, 0.0], [2.0, 2.0]])
    weight = np.array([[4.0, 0.0], [4.0, 10.0], [0.0, 0.0], [2.0, 4.0]])
    ranked = ranked_images(ImageCounts("iou", value, weight))
    assert ranked.order == [3, 1, 0]
    np.testing.assert_allclose(ranked.scores, [0.25, 0.625, np.nan, 0.75])
    ranked = ranked_images(ImageCounts("mean", np.array([1.0, 0.0, 3.0]), np.array([2.0, 0.0, 3.0])))
    assert ranked.order == [2, 0]


def test_best_median_and_worst_are_shown_once_each() -> None:
    shown = shown_images(list(range(100, 111)))
    assert shown == [
        ("best", 100), ("best", 101), ("best", 102), ("median", 104), ("median", 105), ("median", 106),
        ("worst", 108), ("worst", 109), ("worst", 110),
    ]  # fmt: skip
    assert [index for _, index in shown_images([7, 3])] == [7, 3]
    assert shown_images([]) == []


class Images:
    names = ("a", "b")
    digest = image_digest = ""

    def __init__(self, **annotations: Any) -> None:
        self._annotations = annotations

    def read(self, index: int) -> Annotated:
        return Annotated(np.full((TILE, TILE, 3), 60 * index, np.uint8), **self._annotations)


def drawn(images: Images, predicted: np.ndarray, needs: Any) -> np.ndarray:
    counts = ImageCounts("mean", np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    content = scores_sheet(images, counts, lambda index: predicted, needs)
    assert content is not None
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture)


def tile(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
    top = CAPTION_HEIGHT + MARGIN + row * (TILE + MARGIN)
    left = MARGIN + column * (TILE + MARGIN)
    return sheet[top : top + TILE, left : left + TILE]


def test_a_row_is_image_truth_and_prediction_in_voc_colours() -> None:
    labels = np.zeros((TILE, TILE), np.int16)
    labels[: TILE // 2] = 15
    labels[0] = UNLABELLED
    sheet = drawn(Images(labels=labels), np.full((TILE, TILE), 7), "labels")
    assert (tile(sheet, 0, 0)[TILE // 2 :] == 60).all()  # the better one first
    assert (tile(sheet, 1, 0)[TILE // 2 :] == 0).all()
    truth, predicted = tile(sheet, 0, 1), tile(sheet, 0, 2)
    assert (truth[1 : TILE // 2] == voc_palette()[15]).all()
    assert (truth[TILE // 2 :] == 0).all()
    assert (truth[0] == (224, 224, 192)).all()
    assert (predicted == voc_palette()[7]).all()


def test_boxes_are_drawn_small_ones_above_large_ones() -> None:
    boxes = np.array([[10.0, 10.0, 40.0, 40.0], [0.0, 0.0, 100.0, 100.0]])
    sheet = drawn(Images(boxes=boxes), np.zeros((TILE, TILE), np.int64), "boxes")
    truth = tile(sheet, 0, 1)
    assert (truth[10:40, 10:40] == truth[10, 10]).all()
    assert (truth[0:100, 0:10] == truth[0, 0]).all()
    assert (truth[10, 10] != truth[0, 0]).any()
    assert (truth[100:] == 40).all()


def test_nothing_is_drawn_where_nothing_was_scored() -> None:
    counts = ImageCounts("mean", np.zeros(2), np.zeros(2))
    assert scores_sheet(Images(), counts, lambda index: np.zeros((2, 2), int), "labels") is None
