"""A look at a run while it trains: whether neighbours are of one class, and how well refined masks fit known ones."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import IMAGE_MEMBER, SampleMeta
from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data.augment import normalize
from train.data.shards.reader import RawSample, ShardReader
from train.data.views import decode_labels, decode_pixels
from train.distributed.collectives import gather_rows, texts_of_all
from train.distributed.world import World
from train.evals.frozen.knn import knn_top1
from train.r2o.model import R2O
from train.run.probe_masks import MaskProbe, evaluating, whole_image

QUERY_SHARE = 5  # one image in so many is asked about; the others answer
MOST_SHARDS = 32  # that are read for it
BATCH = 64


class Probe:
    """Figures of fixed images; the same on every rank, for any number of them, whatever the run's seed.

    `knn_top1`: share of images whose class the weighted vote of their 20 nearest neighbours names, in [0, 1]. Features
    are C5 of the online backbone in eval mode, averaged over the whole image. The images are of the shards, evenly
    spread over up to 32 of them; the network trains on them too, but never sees a class. Absent where the shards have
    fewer than two classes. Ranks share the work.

    `linear_miou`, `abo`, `abo_slic`: of the masks of `run.probe_masks`, see `MaskProbe`.
    """

    def __init__(self, reader: ShardReader, settings: PretrainSettings, world: World) -> None:
        self._world = world
        self._classed = _read_classed(reader, settings, world) if len(reader.manifest.classes) > 1 else None
        self._masked = MaskProbe(settings, world) if settings.run.probe_masks else None

    @torch.no_grad()
    def figures(self, model: R2O, *, epoch: int) -> dict[str, float]:
        """What can be told of a model in train mode, by name; modes, buffers and random numbers stay as they are.

        Every rank must take part.

        Args:
            epoch: of the last step, as in `Panels`.
        """
        figures: dict[str, float] = {}
        if self._classed:
            top1 = self._classed.top1(model.online["backbone"], self._world)
            figures |= {} if top1 is None else {"knn_top1": top1}
        return figures | (self._masked.figures(model, epoch=epoch) if self._masked else {})


class _Classed(NamedTuple):
    """This rank's images, uint8 (n, 3, s, s), and of those of each rank (place among all, class id)."""

    images: Tensor
    of_ranks: list[list[tuple[int, int]]]

    def top1(self, backbone: nn.Module, world: World) -> float | None:
        """See `Probe`; None where fewer than two classes are left, or nothing to compare."""
        place, classes = torch.tensor([row for rows in self.of_ranks for row in rows]).view(-1, 2).to(world.device).T
        is_query = place % QUERY_SHARE == 0
        if len(classes.unique()) < 2 or is_query.all() or not is_query.any():
            return None
        features = self._features(backbone, world)
        return knn_top1(features[~is_query], classes[~is_query], features[is_query], classes[is_query])

    def _features(self, backbone: nn.Module, world: World) -> Tensor:
        """L2-normalised mean C5 of the images of all ranks, (N, C)."""
        with evaluating(backbone):
            batches = self.images.split(BATCH)
            means = [backbone(normalize(images.to(world.device))).c5.mean((2, 3)) for images in batches]
        own = F.normalize(torch.cat(means), dim=1)
        longest = max(map(len, self.of_ranks))
        of_ranks = gather_rows(F.pad(own, (0, 0, 0, longest - len(own))), world).values.split(longest)
        return torch.cat([part[: len(rows)] for part, rows in zip(of_ranks, self.of_ranks, strict=True)])


def _read_classed(reader: ShardReader, settings: PretrainSettings, world: World) -> _Classed:
    """This rank's share of the images that have a class; damaged ones are left out where they may be skipped."""
    class_ids = {name: number for number, name in enumerate(reader.manifest.classes)}
    ids = _spread_ids(reader.manifest, settings.run.probe_images)
    images, rows = [], []

    def decode(raw: RawSample) -> tuple[SampleMeta, np.ndarray]:
        meta, _ = decode_labels(raw.members, key=raw.key, max_superpixels=reader.manifest.max_superpixels)
        return meta, decode_pixels(raw.members[IMAGE_MEMBER], key=raw.key)

    for place in np.array_split(np.arange(len(ids)), world.size)[world.rank].tolist():
        try:
            meta, pixels = reader.decoded(int(ids[place]), decode)
        except InputError:
            if settings.data.on_damage == "fail":
                raise
            continue
        if meta.class_name in class_ids:
            images.append(whole_image(pixels, settings))
            rows.append((place, class_ids[meta.class_name]))
    return _Classed(_stacked(images, settings), [json.loads(text) for text in texts_of_all(json.dumps(rows), world)])


def _spread_ids(manifest: Manifest, count: int) -> np.ndarray:
    """Up to `count` sample ids, evenly spaced in up to 32 shards, those of the panels; shards are shuffled already."""
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    shown = np.linspace(0, manifest.stored - 1, MOST_SHARDS).astype(int)
    chosen = np.unique(np.searchsorted(ends, shown, side="right"))
    ids = np.concatenate([np.arange(ends[i] - manifest.shards[i].samples, ends[i]) for i in chosen])
    count = min(count, len(ids))
    return ids[np.arange(count) * len(ids) // count]


def _stacked(images: list[Tensor], settings: PretrainSettings) -> Tensor:
    size = settings.data.image_size
    return torch.stack(images) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
