"""Unsupervised segmentation of birds (Section 4.3, Table 3): K-means of each image, one segment matched to the bird.

The paper says: K-means of image features with K = 5, "Hungarian matching to assign one segment as the foreground", the
rest is background, mIoU of foreground and background. It does not say whether IoUs are averaged over images or
accumulated over the data set, nor which features, input size or restarts. So results have both, and the rest are
settings. The ground truth chooses the segment: `whole_image`, `centre_box` and `random_of_equal_k` tell what that alone
is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor
from torch.nn import functional as F

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.foundation.pictures import resize_labels
from pipeline.foundation.progress import Progress
from train.config.frozen import CubSettings
from train.evals.datasets.annotated import UNLABELLED, ImageList
from train.evals.frozen.numerics.overlap import common_pixels, overlap_table
from train.evals.frozen.numerics.partitions import centre_partition, random_partition
from train.evals.frozen.protocol import Finding, Task
from train.r2o.kmeans import kmeans, seeding_uniforms

BATCH = 64  # images whose K-means run side by side
FINE = (64, 64)  # of the partition around the centre, which no feature grid has to hold
MATCHING = "the ground truth chooses the segment: the one with the best IoU with the bird"


class Matched(NamedTuple):
    """The segment that was matched to the bird, and pixels of (foreground, background): int64 (2,) each."""

    segment: int
    intersection: Int[np.ndarray, " 2"]
    union: Int[np.ndarray, " 2"]


def score(task: Task[CubSettings]) -> Finding:
    """Score every image of `val` that shows a bird, at the size of its annotation; ids are upsampled by nearest.

    Objects of any id are one foreground; void counts neither for nor against. In an image that is all foreground the
    mean of both is that of the foreground alone. Images without foreground are left out, and counted in `chosen`.
    """
    settings, seed = task.settings, task.seed
    found = task.features("val", settings.level, settings.size)
    with task.clock.phase("clusters"):
        progress, parts = Progress("birds", len(found.cells), "images"), []
        for first, chunk in _chunks(found.cells):
            parts.append(segments_of(chunk, settings, seed=seed, first_image=first, device=task.device).cpu().numpy())
            progress.advance(len(chunk))
        segments = np.concatenate(parts)
    with task.clock.phase("matching"):
        scored = _score_all(found.images, segments, settings.clusters, seed)
    per_image = {
        **_four(scored.matched),
        **{name: _image_mean(matched)["of_both"] for name, matched in scored.lines.items()},
    }
    return Finding(
        scores={name: score_of(counts) for name, counts in per_image.items()},
        per_image=per_image,
        chosen={
            "matching": MATCHING,
            "upsampling": "nearest",
            "cells": list(found.cells.shape[1:3]),
            "images_without_foreground": sum(one is None for one in scored.matched),
        },
        predict=lambda index: _painted(segments[index], scored, index),
    )


def segments_of(
    cells: Float[np.ndarray, "n h w c"], settings: CubSettings, *, seed: int, first_image: int, device: torch.device
) -> Int[Tensor, "n h w"]:
    """The best by inertia of several K-means of each image's cells; ids in 0 … K−1.

    Args:
        first_image: place of the first in the list. Random numbers follow from (seed, restart, place) alone.
    """
    rows = torch.from_numpy(np.ascontiguousarray(cells)).to(device).float().flatten(1, 2)
    rows = F.normalize(rows, dim=2) if settings.normalize_features else rows
    valid = torch.ones(rows.shape[:2], dtype=torch.bool, device=device)
    best, least = torch.zeros_like(valid, dtype=torch.int64), torch.full_like(rows[:, 0, 0], torch.inf)
    for restart in range(settings.restarts):
        drawn = seeding_uniforms(
            settings.clusters, seed=seed, step=restart, first_group=first_image, num_groups=len(rows)
        )
        clusters = kmeans(rows, valid, uniforms=drawn.to(device), iterations=settings.iterations)
        best = torch.where((clusters.inertia < least).unsqueeze(1), clusters.assignment, best)
        least = torch.minimum(clusters.inertia, least)
    return best.view(cells.shape[:3])


def match_to_bird(segments: Integer[np.ndarray, "h w"], ids: Integer[np.ndarray, "H W"]) -> Matched | None:
    """The segment of greatest IoU with all objects together (of equal ones the first); None without any object.

    With one foreground this is what Hungarian matching gives: the others are one background.
    """
    bird = np.where(ids == UNLABELLED, UNLABELLED, ids != 0).astype(np.int16)
    common = common_pixels(segments, bird)
    if not len(common.objects):
        return None
    segment = int(overlap_table(common)[0].argmax())
    area, inside, outside = int(common.area[0]), int(common.inside[0, segment]), int(common.outside[0, segment])
    background = int(common.outside[0].sum())
    return Matched(
        segment,
        np.array([inside, background - outside]),
        np.array([area + outside, background + area - inside]),
    )


class _Scored(NamedTuple):
    """Per image what was matched; the same of partitions that know nothing of the image; sizes of the annotations."""

    matched: list[Matched | None]
    lines: dict[str, list[Matched | None]]
    shapes: list[tuple[int, int]]


def _score_all(images: ImageList, segments: np.ndarray, clusters: int, seed: int) -> _Scored:
    size = (segments.shape[1], segments.shape[2])
    whole, centre = np.zeros((1, 1), np.int64), centre_partition(FINE)
    scored = _Scored([], {"whole_image": [], "centre_box": [], "random_of_equal_k": []}, [])
    for index, own in enumerate(segments):
        objects = images.read(index).objects
        assert objects is not None, "the protocol needs objects"
        random = random_partition(clusters, size, np.random.default_rng([seed, index]))
        scored.matched.append(match_to_bird(own, objects.ids))
        for matched, line in zip(scored.lines.values(), (whole, centre, random), strict=True):
            matched.append(match_to_bird(line, objects.ids))
        scored.shapes.append((objects.ids.shape[0], objects.ids.shape[1]))
    return scored


def _chunks(cells: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for first in range(0, len(cells), BATCH):
        yield first, cells[first : first + BATCH]


def _four(matched: list[Matched | None]) -> dict[str, ImageCounts]:
    """{mean over images, accumulated over the data set} × {foreground, mean of both}."""
    intersection = np.array([(0, 0) if one is None else one.intersection for one in matched], float)
    union = np.array([(0, 0) if one is None else one.union for one in matched], float)
    of_images = _image_mean(matched)
    return {
        "image_mean_of_both": of_images["of_both"],
        "image_mean_foreground": of_images["foreground"],
        "accumulated_of_both": ImageCounts("iou", intersection, union),
        "accumulated_foreground": ImageCounts("iou", intersection[:, :1], union[:, :1]),
    }


def _image_mean(matched: list[Matched | None]) -> Mapping[str, ImageCounts]:
    """IoUs of each image; of both, over those of the two that are in the truth or in the prediction."""
    weight = np.array([one is not None for one in matched], float)
    iou = [None if one is None else one.intersection[one.union > 0] / one.union[one.union > 0] for one in matched]
    return {
        "of_both": ImageCounts("mean", np.array([0 if one is None else one.mean() for one in iou], float), weight),
        "foreground": ImageCounts("mean", np.array([0 if one is None else one[0] for one in iou], float), weight),
    }


def _painted(segments: np.ndarray, scored: _Scored, index: int) -> np.ndarray:
    """1 where the bird was found, 0 elsewhere."""
    found = scored.matched[index]
    painted = resize_labels(segments, scored.shapes[index])
    return np.zeros_like(painted) if found is None else (painted == found.segment).astype(painted.dtype)
