"""Average best overlap of refined masks (Section 4.4, Figure 3; A.8): how well they fit what people call objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.foundation.pictures import resize_labels
from pipeline.foundation.progress import Progress
from train.config.frozen import FINAL_NUM_CLUSTERS, AboSettings
from train.data.resize import resized
from train.evals.datasets.annotated import ImageList, Objects
from train.evals.frozen.numerics.overlap import best_overlaps, best_unions, common_pixels
from train.evals.frozen.numerics.partitions import cells_of, equal_rectangles, random_partition
from train.evals.frozen.protocol import Finding, Task
from train.evals.frozen.superpixels import ABO_SUPERPIXELS, ShardSuperpixels
from train.r2o.batch_norms import batch_norm_buffers_kept
from train.r2o.kmeans import seeding_uniforms
from train.r2o.masks import grid_label_map
from train.r2o.refine import Refinement, refine

KMEANS_ITERATIONS = 10  # of the paper's recipe, as all of `_refined`
ROWS, COLUMNS = 10, 10  # of the rectangles that stand in for superpixels
HEADLINE, OF_CLASSES, CEILING = "over_objects", "over_classes", "ceiling_of_grid"


def score(task: Task[AboSettings]) -> Finding:
    """Mean best overlap over objects and over classes, at the size of the annotations; void counts nowhere.

    Masks are refined as in training by the paper's settings, from groups of consecutive images of the list. The last
    group is filled up from the beginning of the list; what fills it is not scored twice. One seed is one repeat.
    K is that of the settings, else of the run's schedule, else 4.

    Scores beside it are of the same objects:
        slic_prior: the superpixels themselves; `rectangles_prior` where rectangles stand in for them.
        grid_of_equal_k, random_of_equal_k: see `equal_rectangles` and `random_partition`.
        ceiling_of_grid: the best union of feature cells for each object. No mask of that resolution exceeds it.

    Raises:
        InputError: the shards of superpixels lack an image, or have another one of that name.
    """
    settings, images = task.settings, task.data.val
    superpixels = None
    if settings.superpixels is not None:
        superpixels = ShardSuperpixels(settings.superpixels, images.names, key=ABO_SUPERPIXELS)
    num_clusters = settings.clusters or task.num_clusters or FINAL_NUM_CLUSTERS
    tally, shown = _Tally(len(images.names), len(task.data.classes)), []
    features = _FEATURES[settings.batch_norm](task)
    progress = Progress("best overlap", len(images.names), "images")
    for first in range(0, len(images.names), settings.group_size):
        with task.clock.phase("annotations"):
            group = _read_group(images, first, settings, superpixels)
        with task.clock.phase("masks"):
            drawn = seeding_uniforms(
                num_clusters, seed=task.seed, step=0, first_group=first // settings.group_size, num_groups=1
            )
            refined = _refined(features(group), group.prior, drawn.to(task.device)).cpu().numpy()
        with task.clock.phase("overlaps"):
            for index, (masks, prior, objects) in enumerate(
                zip(refined, group.prior.numpy(), group.objects, strict=False), start=first
            ):
                shown.append(_Shown(masks, (objects.ids.shape[0], objects.ids.shape[1])))
                rng = np.random.default_rng([task.seed, index])
                _add_image(tally, index, objects, masks, prior, num_clusters, rng, is_slic=superpixels is not None)
        progress.advance(len(group.objects))
    per_image = tally.per_image()
    return Finding(
        scores={name: score_of(counts) for name, counts in per_image.items()},
        per_class={OF_CLASSES: tally.per_class(task.data.classes, task.data.background)},
        per_image=per_image,
        chosen={
            "clusters": num_clusters,
            "regions": f"rectangles, {ROWS} × {COLUMNS}" if superpixels is None else "superpixels of the shards",
            "cells": list(shown[0].masks.shape),
            "clusters_in_use": float(np.mean([len(np.unique(one.masks)) for one in shown])),
            "fill_of_last_group": -len(shown) % settings.group_size,
            "images_without_objects": int((tally.objects == 0).sum()),
        },
        predict=lambda index: resize_labels(*shown[index]),
    )


class _Shown(NamedTuple):
    """A refined map, and the size of the annotation."""

    masks: Integer[np.ndarray, "h w"]
    size: tuple[int, int]


class _Group(NamedTuple):
    """One clustering group. `objects` are those of the images that are scored, which come first.

    places: of its images in the list. prior: superpixels, int32. squares: images as the network takes them.
    """

    places: list[int]
    objects: list[Objects]
    prior: Int[Tensor, "b s s"]
    squares: UInt8[Tensor, "b 3 size size"] | None


def _read_group(images: ImageList, first: int, settings: AboSettings, superpixels: ShardSuperpixels | None) -> _Group:
    total, size = len(images.names), settings.group_size
    places = [place % total for place in range(first, first + size)]
    objects, maps, squares = [], [], []
    for place in places:
        read = images.read(place)
        assert read.objects is not None, "the protocol needs objects"
        objects.append(read.objects)
        if superpixels is not None:
            height, width = read.objects.ids.shape
            maps.append(torch.from_numpy(superpixels.read(place, (height, width))))
        if settings.batch_norm == "group":
            squares.append(resized(torch.from_numpy(read.image).permute(2, 0, 1), settings.size))
    like = torch.zeros(size, settings.size, settings.size, dtype=torch.int32)
    prior = torch.stack(maps) if maps else grid_label_map(ROWS, COLUMNS, like=like)
    return _Group(places, objects[: total - first], prior, torch.stack(squares) if squares else None)


GroupFeatures = Callable[[_Group], Float[Tensor, "b c h w"]]


def _cached_features(task: Task[AboSettings]) -> GroupFeatures:
    """Those of the pass over all images, by running statistics."""
    cells = task.features("val", task.settings.level, task.settings.size).cells

    def features(group: _Group) -> Tensor:
        return torch.from_numpy(cells[group.places]).to(task.device).float().permute(0, 3, 1, 2)

    return features


def _features_by_group(task: Task[AboSettings]) -> GroupFeatures:
    """By the statistics of each group, as the target has them in training."""
    model = task.load_model()

    @torch.no_grad()
    def features(group: _Group) -> Tensor:
        assert group.squares is not None
        with batch_statistics(model):
            found = model(group.squares.to(task.device))
        chosen: Tensor = getattr(found, task.settings.level)
        return chosen.float()

    return features


_FEATURES = {"running": _cached_features, "group": _features_by_group}


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch, and keep their running statistics; all else stays in its mode."""
    modes = [(module, module.training) for module in model.modules() if isinstance(module, _BatchNorm)]
    with batch_norm_buffers_kept(model):
        for module, _ in modes:
            module.training = True
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def _refined(features: Tensor, prior: Tensor, uniforms: Tensor) -> Tensor:
    """Refined maps (b, h, w) of one group by the method's own code: superpixels are clustered, cells are assigned."""
    how = Refinement(
        max_superpixels=int(prior.max()) + 1,
        clustering="kmeans",
        regions="superpixels",
        grid=None,
        clustering_group_size=len(features),
        kmeans_iterations=KMEANS_ITERATIONS,
        normalize_features=True,
        assign="cell",
    )
    return refine(features, prior.to(features.device), how, uniforms=uniforms)


def _add_image(
    tally: _Tally,
    index: int,
    objects: Objects,
    masks: np.ndarray,
    prior: np.ndarray,
    num_clusters: int,
    rng: np.random.Generator,
    *,
    is_slic: bool,
) -> None:
    size = (masks.shape[0], masks.shape[1])
    lines = {
        HEADLINE: masks,
        "slic_prior" if is_slic else "rectangles_prior": prior,
        "grid_of_equal_k": equal_rectangles(num_clusters, size),
        "random_of_equal_k": random_partition(num_clusters, size, rng),
    }
    overlaps = {name: best_overlaps(common_pixels(segments, objects.ids)) for name, segments in lines.items()}
    cells = common_pixels(cells_of(size), objects.ids)
    tally.add(index, {**overlaps, CEILING: best_unions(cells)}, classes=[objects.classes[i - 1] for i in cells.objects])


class _Tally:
    """Sums over the objects of each image."""

    def __init__(self, num_images: int, num_classes: int) -> None:
        self.objects = np.zeros(num_images)
        self._lines: dict[str, np.ndarray] = {}
        self._of_class, self._in_class = np.zeros((num_images, num_classes)), np.zeros((num_images, num_classes))

    def add(self, index: int, overlaps: dict[str, np.ndarray], *, classes: list[int]) -> None:
        """What the objects of one image add, whose classes are given in the same order."""
        self.objects[index] = len(classes)
        for name, values in overlaps.items():
            self._lines.setdefault(name, np.zeros(len(self.objects)))[index] = values.sum()
        np.add.at(self._of_class[index], classes, overlaps[HEADLINE])
        np.add.at(self._in_class[index], classes, 1)

    def per_image(self) -> dict[str, ImageCounts]:
        """Counts of every score."""
        of_classes = ImageCounts("iou", self._of_class, self._in_class)
        lines = {name: ImageCounts("mean", values, self.objects) for name, values in self._lines.items()}
        return {HEADLINE: lines.pop(HEADLINE), OF_CLASSES: of_classes, **lines}

    def per_class(self, classes: tuple[str, ...], background: int | None) -> dict[str, float | None]:
        """Mean over the objects of each class; None where `val` shows none."""
        value, count = self._of_class.sum(0), self._in_class.sum(0)
        return {
            name: float(value[i] / count[i]) if count[i] else None
            for i, name in enumerate(classes)
            if i != background or count[i]
        }
