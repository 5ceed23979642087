"""R2O: an online and a target network, refinement by the target, and the loss on refined masks (Figure 2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train.r2o.loss import symmetric_loss_sum
from train.r2o.masks import MIN_VALID_AREA, align_masks, mask_pool, one_hot_masks
from train.r2o.refine import clusters_in_use, refine


class Batch(NamedTuple):
    """One local batch on the device. `images` and `views` are normalised floats."""

    images: Float[Tensor, "b 3 h w"]
    superpixels: Int[Tensor, "b sh sw"]
    views: Float[Tensor, "b 2 3 vh vw"]
    crop_box: Float[Tensor, "b 2 4"]
    flipped: Bool[Tensor, "b 2"]


class Output(NamedTuple):
    """What one forward pass gives. Sums and counts are of the local batch, so that ranks can be pooled."""

    loss_sum: Float[Tensor, ""]
    num_masks: Int[Tensor, ""]
    valid: Bool[Tensor, "b k"]
    refined_map: Int[Tensor, "b rh rw"]
    clusters_in_use: Float[Tensor, " b"]
    predictions: Float[Tensor, "m d"]
    projections: Float[Tensor, "m d"]


class R2O(nn.Module):
    """Online network (backbone, projector, predictor) and its target (backbone, projector).

    Args:
        backbone: returns `c4` and `c5`; `forward_c4` gives C4 alone.
        group_size, iterations, normalize, assign: see `refine`.
        max_superpixels: superpixel ids are below this.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        *,
        max_superpixels: int,
        group_size: int,
        iterations: int,
        normalize: bool = True,
        assign: str = "cell",
    ) -> None:
        super().__init__()
        self.online = nn.ModuleDict({"backbone": backbone, "projector": projector})
        self.predictor = predictor
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.max_superpixels, self.group_size = max_superpixels, group_size
        self.iterations, self.normalize, self.assign = iterations, normalize, assign

    def forward(self, batch: Batch, uniforms: Float[Tensor, "g k t"]) -> Output:
        """Refine, align, pool and compare (Sections 3.1, 3.2). K is `uniforms.shape[1]`."""
        num_clusters = uniforms.shape[1]
        refined_map = self.refine(batch.images, batch.superpixels, uniforms)
        online = tuple(self.online["backbone"](batch.views[:, v]).c5 for v in (0, 1))
        masks = self.view_masks(refined_map, batch, num_clusters, size=(online[0].shape[2], online[0].shape[3]))
        valid = torch.stack([m.sum((2, 3)) > MIN_VALID_AREA for m in masks]).all(0)
        rows = valid.flatten().nonzero().squeeze(1)
        with torch.no_grad():
            projections = tuple(
                self._project(self.target, self.target["backbone"](batch.views[:, v]).c5, masks[v], rows)
                for v in (0, 1)
            )
        predictions = tuple(self.predictor(self._project(self.online, online[v], masks[v], rows)) for v in (0, 1))
        return Output(
            loss_sum=symmetric_loss_sum((predictions[0], predictions[1]), (projections[0], projections[1])),
            num_masks=valid.sum(),
            valid=valid,
            refined_map=refined_map,
            clusters_in_use=clusters_in_use(refined_map, num_clusters=num_clusters),
            predictions=predictions[0].detach(),
            projections=projections[0],
        )

    @torch.no_grad()
    def refine(
        self, images: Float[Tensor, "b 3 h w"], superpixels: Int[Tensor, "b sh sw"], uniforms: Float[Tensor, "g k t"]
    ) -> Int[Tensor, "b rh rw"]:
        """The refined map m of whole images, from the target's C4 (train-mode statistics, buffers left alone)."""
        with batch_norm_buffers_kept(self.target):
            c4 = self.target["backbone"].forward_c4(images)  # type: ignore[operator]
        with torch.autocast(c4.device.type, enabled=False):
            return refine(
                c4,
                superpixels,
                max_superpixels=self.max_superpixels,
                group_size=self.group_size,
                uniforms=uniforms,
                iterations=self.iterations,
                normalize=self.normalize,
                assign=self.assign,
            )

    @staticmethod
    def view_masks(
        refined_map: Int[Tensor, "b rh rw"], batch: Batch, num_clusters: int, *, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "b k h5 w5"], ...]:
        """m1 and m2: the refined masks as each view sees them, on its C5 grid."""
        refined_masks = one_hot_masks(refined_map, num_clusters)
        return tuple(
            align_masks(refined_masks, crop_box=batch.crop_box[:, v], flipped=batch.flipped[:, v], size=size)
            for v in (0, 1)
        )

    @staticmethod
    def _project(network: nn.ModuleDict, c5: Tensor, masks: Tensor, rows: Tensor) -> Tensor:
        """z: mask-pooled C5 through the projector, for the masks valid in both views only."""
        return network["projector"](mask_pool(c5, masks).features.flatten(0, 1)[rows])


@contextmanager
def batch_norm_buffers_kept(module: nn.Module) -> Iterator[None]:
    """Batch norms in train mode use the batch's statistics as ever, but do not move their running ones."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
