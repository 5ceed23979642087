"""Neighbours in context against a plain loop, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.protocols.labelled_scenes import (
    blob_task,
    make_task,
    pure_maps,
    shares_by_loop,
    squared,
)
from train.config.frozen import ContextSettings
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.protocols.context import sampled_cells, score, upsampled_classes

SETTINGS = ContextSettings(size=32, k=5, temperature=0.1)


def bilinear(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(classes, h, w) at another size: half-pixel centres, edges repeated."""
    out = np.zeros((len(values), *shape))
    for y in range(shape[0]):
        for x in range(shape[1]):
            v = [
                min(max((p + 0.5) * n / m - 0.5, 0), n - 1)
                for p, n, m in zip((y, x), values.shape[1:], shape, strict=True)
            ]
            (y0, x0), (fy, fx) = (int(v[0]), int(v[1])), (v[0] % 1, v[1] % 1)
            y1, x1 = min(y0 + 1, values.shape[1] - 1), min(x0 + 1, values.shape[2] - 1)
            top = values[:, y0, x0] * (1 - fx) + values[:, y0, x1] * fx
            out[:, y, x] = top * (1 - fy) + (values[:, y1, x0] * (1 - fx) + values[:, y1, x1] * fx) * fy
    return out


@pytest.mark.parametrize("background", [0, None])
def test_against_a_loop(background: int | None) -> None:
    base = blob_task(SETTINGS)
    both = {part: base.features(part, "c5", 32) for part in ("train", "val")}
    parts = {part: (features.images.maps, features.cells) for part, features in both.items()}
    task = make_task(SETTINGS, parts, classes=4, background=background)
    found = score(task)
    keys, shares = [], []
    for labels, cells in zip(*parts["train"], strict=True):
        square = squared(labels, size=32)
        if background is not None:
            square = np.where(square == UNLABELLED, background, square)
        for share, cell in zip(
            shares_by_loop(square, grid=4, classes=4).reshape(-1, 4), cells.reshape(-1, 8).astype(float), strict=True
        ):
            if share.sum():
                keys.append(cell / np.linalg.norm(cell))
                shares.append(share)
    assert len(keys) == found.chosen["memory_cells"] == (24 * 16 if background == 0 else 23 * 16)
    truths, predictions, squares = [], [], []
    for index, (labels, cells) in enumerate(zip(*parts["val"], strict=True)):
        maps = np.zeros((4, 4, 4))
        for y in range(4):
            for x in range(4):
                query = cells[y, x].astype(float)
                cosine = np.stack(keys) @ query / np.linalg.norm(query)
                nearest = np.argsort(-cosine, kind="stable")[:5]
                weights = np.exp(cosine[nearest] / 0.1)
                maps[:, y, x] = (weights[:, None] * np.stack(shares)[nearest]).sum(0) / weights.sum()
        prediction = bilinear(maps, labels.shape).argmax(0)
        assert found.predict is not None
        assert (found.predict(index) == prediction).mean() > 0.995
        truths.append(labels.ravel())
        predictions.append(prediction.ravel())
        squares.append((squared(labels, size=32).ravel(), bilinear(maps, (32, 32)).argmax(0).ravel()))
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    seen = truth != UNLABELLED
    expected = jaccard_score(truth[seen], prediction[seen], average="macro")
    assert found.scores["mean_iou"] == pytest.approx(expected, abs=2e-3)
    assert score_of(found.per_image["mean_iou"]) == found.scores["mean_iou"]
    truth, prediction = (np.concatenate(part) for part in zip(*squares, strict=True))
    seen = truth != UNLABELLED
    expected = jaccard_score(truth[seen], prediction[seen], average="macro")
    assert found.scores["mean_iou_square"] == pytest.approx(expected, abs=2e-3)


def test_upsampling_is_bilinear_with_half_pixel_centres() -> None:
    shares = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    expected = bilinear(shares.astype(float), (13, 31)).argmax(0)
    np.testing.assert_array_equal(upsampled_classes(torch.from_numpy(shares), shape=(13, 31)), expected)


def test_truth_fed_back_gives_one_at_the_centres_of_cells() -> None:
    """With one cell of each map per pixel; interpolation between cells then has nothing to do."""
    parts = {}
    for part, count in (("train", 12), ("val", 5)):
        cells, maps = pure_maps(count, grid=4, shape=(4, 4), classes=5, seed=count)
        parts[part] = (maps, np.eye(5, dtype=np.float16)[cells])
    found = score(make_task(ContextSettings(size=4), parts, classes=5))
    assert found.scores == {"mean_iou": 1, "pixel_accuracy": 1, "mean_iou_square": 1}
    assert found.chosen == {"k": 30, "memory_cells": 192}


def test_a_sample_is_the_lowest_ranks_of_each_image() -> None:
    rng = np.random.default_rng(0)
    presence = rng.random((6, 10, 3)) < 0.4
    presence[2, :8] = False  # an image with two cells
    presence[2, 8:, 0] = True
    places = sampled_cells(presence, total=19, seed=4)  # three cells an image
    draw = np.random.default_rng(4)
    draw.permutation(6)
    uniform = draw.random((6, 10))
    expected = []
    for image in range(6):
        ranks = {}
        for cell in range(10):
            if presence[image, cell].any():
                weight = sum(presence[image, :, c].sum() for c in range(3) if presence[image, cell, c])
                ranks[cell] = weight * uniform[image, cell]
        expected += [image * 10 + cell for cell in sorted(sorted(ranks, key=lambda cell: ranks[cell])[:3])]
    assert places.tolist() == expected
    assert len(places) == 17
    assert len(sampled_cells(presence, total=4, seed=0)) == 4
    assert len({place // 10 for place in sampled_cells(presence, total=4, seed=0)}) == 4
    everything = sampled_cells(presence, total=600, seed=0)
    assert everything.tolist() == np.flatnonzero(presence.reshape(60, 3).any(1)).tolist()


def test_memory_is_as_large_as_asked() -> None:
    found = score(blob_task(ContextSettings(size=32, memory_cells=50)))
    assert found.chosen == {"k": 30, "memory_cells": 48}  # two of each of 24 images
    assert score(blob_task(ContextSettings(size=32, memory_cells=7))).chosen == {"k": 7, "memory_cells": 7}


def test_training_images_without_labels_are_named() -> None:
    void = [np.full((9, 9), UNLABELLED, dtype=np.int16)] * 3
    part = (void, np.ones((3, 4, 4, 2), dtype=np.float16))
    with pytest.raises(InputError, match="train: no image has a labelled pixel"):
        score(make_task(SETTINGS, {"train": part, "val": part}, classes=3, background=None))
