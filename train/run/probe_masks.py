"""Images whose masks are known: how well refined masks fit them, and what C5 tells of them, while a run trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import VOID
from pipeline.foundation.progress import say
from train.config.frozen import DataPart, Level, LinearSettings
from train.config.pretrain import PretrainSettings
from train.data.augment import normalize
from train.data.resize import resized
from train.distributed.world import World
from train.evals.datasets.annotated import UNLABELLED, Annotated, DataSet
from train.evals.frozen.numerics.overlap import best_overlaps, common_pixels
from train.evals.frozen.protocol import SplitFeatures, Task
from train.evals.frozen.protocols import linear
from train.evals.frozen.superpixels import ShardSuperpixels
from train.evals.segmentation.augment import LabelledImage
from train.evals.segmentation.voc_folder import VocFolder
from train.models.frozen import FrozenModel
from train.r2o.kmeans import seeding_uniforms
from train.r2o.masks import grid_label_map, grid_of
from train.r2o.model import R2O

MASK_LIST, MOST_MASKED, GRID_CELLS = "val", 256, 100
BATCH = 64
FEW_C = {"log10_c": (-4.0, 2.0), "num_c": 3, "max_iterations": 100}  # so that a probe takes seconds
SUPERPIXELS_KEY = "pretrain.run.probe_superpixels"


class MaskProbe:
    """Figures of up to 256 images of `run.probe_masks`, evenly spaced in its list `val`, in whole clustering groups.

    `linear_miou`: linear segmentation (`train.evals.frozen.protocols.linear`) of C5 of the online backbone in eval
    mode, fitted on every second of the images and scored on the others, with three C to choose from. Absent, and said,
    where that cannot be: the cells of C5 are no whole pixels, or too few images have labels.

    `abo`: average best overlap (Section 4.4) of refined masks with the objects, see `best_overlaps`; an object is what
    a class other than the background covers in an image. The masks are those of training at K of the epoch, by the
    target in train mode, over the superpixels of `run.probe_superpixels`. Without them equal rectangles stand for
    superpixels, 10 × 10 at most. Absent where masks come from no clustering,
    or images show no object.

    `abo_slic`: the same of those superpixels themselves, the line that `abo` is to rise above.

    Every rank does all of it: batch statistics are of one group.
    """

    def __init__(self, settings: PretrainSettings, world: World) -> None:
        self._settings, self._world, self._device = settings, world, world.device
        self._is_clustered = settings.refine.clustering == "kmeans" and settings.objective.view_masks == "refined"
        self._masked = _read_masked(settings)
        slic = self._masked.superpixels
        self._of_slic = None if slic is None else _mean_best_overlap(slic.numpy(), self._masked.labels)

    def figures(self, model: R2O, *, epoch: int) -> dict[str, float]:
        """By name, as in `Probe.figures`."""
        told = {"linear_miou": self._linear_miou(model.online["backbone"])}
        if self._is_clustered:
            told |= {"abo": _mean_best_overlap(self._refined(model, epoch), self._masked.labels)}
            told |= {"abo_slic": self._of_slic}
        return {name: figure for name, figure in told.items() if figure is not None}

    def _linear_miou(self, backbone: nn.Module) -> float | None:
        """See the class."""
        masked, size = self._masked, self._settings.data.image_size
        with evaluating(backbone):
            batches = masked.images.split(BATCH)
            c5 = torch.cat([backbone(normalize(images.to(self._device))).c5.float().cpu() for images in batches])
        cells = c5.permute(0, 2, 3, 1).contiguous().numpy()
        parts = {part: slice(first, None, 2) for first, part in enumerate(("train", "val"))}
        held = {part: _HeldImages(masked.names[where], masked.labels[where]) for part, where in parts.items()}

        def features(part: DataPart, level: Level, size: int) -> SplitFeatures:
            own = cells[parts[part]]
            return SplitFeatures(images=held[part], cells=own, pooled=own.mean((1, 2)))

        data = DataSet(
            layout="voc",
            root=masked.folder.root,
            classes=masked.folder.classes,
            background=0,
            has=frozenset({"labels"}),
            train=held["train"],
            train_has=frozenset({"labels"}),
            val=held["val"],
        )
        settings = LinearSettings(size=size, **FEW_C)
        task = Task(
            data=data, settings=settings, features=features, seed=0, device=self._device, load_model=_no_other_model
        )
        try:
            return linear.score(task).scores["mean_iou"]
        except InputError as error:  # one figure is not worth a run
            if self._world.is_main:
                say(f"pretrain: probe: no linear_miou of {masked.folder.root} ({error})")
            return None

    def _refined(self, model: R2O, epoch: int) -> np.ndarray:
        """The refined map of every image, (n, h, w)."""
        size, num_clusters = self._settings.refine.clustering_group_size, self._settings.num_clusters(epoch)
        limit = self._masked.max_superpixels
        refined = []
        for group, images in enumerate(self._masked.images.split(size)):
            uniforms = seeding_uniforms(num_clusters, seed=0, step=0, first_group=group, num_groups=1)
            if self._masked.superpixels is None:
                rows, columns = grid_of(min(GRID_CELLS, model.refinement.max_superpixels))
                regions = grid_label_map(rows, columns, like=images[:, 0].int())
            else:
                regions = self._masked.superpixels[group * size : (group + 1) * size]
            inputs = (normalize(images.to(self._device)), regions.to(self._device), uniforms.to(self._device))
            refined.append(model.refine(*inputs, max_superpixels=limit).cpu().numpy())
        return np.concatenate(refined)


def _mean_best_overlap(maps: np.ndarray, labels: list[np.ndarray]) -> float:
    """Over all objects of all images."""
    return float(
        np.concatenate([best_overlaps(common_pixels(*pair)) for pair in zip(maps, labels, strict=True)]).mean()
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every part of a module in eval mode, and back in its own."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def whole_image(pixels: np.ndarray, settings: PretrainSettings) -> Tensor:
    """The whole image as the target sees it, uint8 (3, s, s)."""
    return resized(torch.from_numpy(pixels).permute(2, 0, 1), settings.data.image_size)


class _HeldImages:
    """Labels of images as a list that a protocol reads; of the images themselves only the names."""

    def __init__(self, names: list[str], labels: list[np.ndarray]) -> None:
        self.names, self._labels = tuple(names), labels
        self.digest = self.image_digest = ""

    def read(self, index: int) -> Annotated:
        """The labels of one of them."""
        labels = self._labels[index]
        return Annotated(np.zeros((*labels.shape, 3), np.uint8), labels)


def _no_other_model() -> FrozenModel:
    raise AssertionError("linear segmentation reads features alone")


class _Masked(NamedTuple):
    """Images uint8 (n, 3, s, s), whole clustering groups, and their labels, int16 (H, W) each, void UNLABELLED.

    superpixels: int32 (n, S, S), ids below `max_superpixels`; None where there are none.
    """

    folder: VocFolder
    names: list[str]
    images: Tensor
    labels: list[np.ndarray]
    superpixels: Tensor | None
    max_superpixels: int | None


def _read_masked(settings: PretrainSettings) -> _Masked:
    """Evenly spaced images of the list, whole clustering groups of them.

    Raises:
        InputError: there is not one group, or the shards of superpixels lack an image.
    """
    run, group = settings.run, settings.refine.clustering_group_size
    assert run.probe_masks is not None
    folder = VocFolder.open(run.probe_masks)
    names = folder.names(MASK_LIST)
    count = min(len(names), max(MOST_MASKED, group)) // group * group
    if not count:
        raise InputError(
            f"pretrain.run.probe_masks: {folder.root} lists {len(names)} images as {MASK_LIST}, less than one "
            f"clustering group of {group}; choose another folder, or null for none"
        )
    chosen = [names[place * len(names) // count] for place in range(count)]
    maps = ShardSuperpixels(run.probe_superpixels, chosen, key=SUPERPIXELS_KEY) if run.probe_superpixels else None
    samples = [folder.file(name).read(len(folder.classes)).sample for name in chosen]
    superpixels = [torch.from_numpy(maps.read(i, _size_of(one))) for i, one in enumerate(samples)] if maps else []
    return _Masked(
        folder,
        chosen,
        torch.stack([whole_image(one.image, settings) for one in samples]),
        [_with_void(one) for one in samples],
        torch.stack(superpixels) if maps else None,
        maps.max_superpixels if maps else None,
    )


def _size_of(sample: LabelledImage) -> tuple[int, int]:
    height, width = sample.labels.shape
    return height, width


def _with_void(sample: LabelledImage) -> np.ndarray:
    """VOC's labels as int16, void as UNLABELLED."""
    return np.where(sample.labels == VOID, np.int16(UNLABELLED), sample.labels.astype(np.int16))
