"""R2O: an online and a target network, refinement by the target, and the loss on refined masks (Figure 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train.r2o.loss import Gather, byol_loss, contrastive_loss_sum, only_here, sample_masks
from train.r2o.masks import MIN_VALID_AREA, align_label_map, cell_areas, mask_pool
from train.r2o.refine import Refinement, clusters_in_use, refine, unrefined

C4_STRIDE = 16


class Batch(NamedTuple):
    """One local batch on the device. `images` and `views` are normalised floats."""

    images: Float[Tensor, "b 3 h w"]
    superpixels: Int[Tensor, "b sh sw"]
    views: Float[Tensor, "b 2 3 vh vw"]
    crop_box: Float[Tensor, "b 2 4"]
    flipped: Bool[Tensor, "b 2"]
    view_superpixels: Int[Tensor, "b 2 vh vw"] | None = None


class Objective(NamedTuple):
    """What is learned from the masks, and how.

    As in sections `pretrain.objective` and `pretrain.model` of the settings, under the same names; defaults are there
    alone.
    """

    loss: str
    view_masks: str
    rows: str
    min_pool_area: float
    roi_aligned: bool
    masks_per_view: int
    temperature: float
    concatenate_views: bool


class Output(NamedTuple):
    """What one forward pass gives. Sums and counts are of the local batch, so that ranks can be pooled.

    `valid`: masks that are in both views. `num_masks`: what the loss is averaged over. `refined_map` is None where
    superpixels were cropped with the views instead.
    """

    loss_sum: Float[Tensor, ""]
    num_masks: Int[Tensor, ""]
    valid: Bool[Tensor, "b m"]
    refined_map: Int[Tensor, "b rh rw"] | None
    clusters_in_use: Float[Tensor, " b"]
    predictions: Float[Tensor, "r d"]
    projections: Float[Tensor, "r d"]


class Compared(NamedTuple):
    """The loss over a number of masks, and view 1's rows that it was taken of."""

    loss_sum: Float[Tensor, ""]
    num_masks: Int[Tensor, ""]
    predictions: Float[Tensor, "r d"]
    projections: Float[Tensor, "r d"]


class R2O(nn.Module):
    """Online network (backbone, projector, predictor) and its target (backbone, projector).

    Args:
        backbone: returns `c4` and `c5`; `forward_c4` gives C4 alone.
        predictor: None for `nt_xent`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: nn.Module,
        predictor: nn.Module | None,
        *,
        refinement: Refinement,
        objective: Objective,
    ) -> None:
        super().__init__()
        self.online = nn.ModuleDict({"backbone": backbone, "projector": projector})
        self.predictor = predictor or nn.Identity()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.refinement, self.objective = refinement, objective
        self.gather: Gather = only_here

    def forward(
        self,
        batch: Batch,
        uniforms: Float[Tensor, "g k"],
        mask_uniforms: Float[Tensor, "b 2 n"] | None = None,
    ) -> Output:
        """Refine, align, pool and compare (Sections 3.1, 3.2). K is `uniforms.shape[1]`.

        Args:
            mask_uniforms: random numbers in [0, 1) that sample masks for the contrastive losses.
        """
        refined_map, num_masks = None, self.refinement.max_superpixels
        if self.objective.view_masks == "refined":
            refined_map = self.refine(batch.images, batch.superpixels, uniforms)
            num_masks = self.refinement.num_masks(uniforms.shape[1])
        online = self._c5(self.online, batch.views)
        masks = self._view_masks(refined_map, batch, num_masks, size=(online[0].shape[2], online[0].shape[3]))
        present = torch.stack([m.sum((2, 3)) > MIN_VALID_AREA for m in masks], 1)
        with torch.no_grad():
            target = online if self.objective.loss == "nt_xent" else self._c5(self.target, batch.views)
        pooled = [self._pool(c5, masks) for c5 in (online, target)]
        compare = self._byol if self.objective.loss == "byol" else self._contrast
        compared = compare(pooled[0], pooled[1], present, mask_uniforms)
        return Output(
            loss_sum=compared.loss_sum,
            num_masks=compared.num_masks,
            valid=present.all(1),
            refined_map=refined_map,
            clusters_in_use=present.any(1).sum(1).float()
            if refined_map is None
            else clusters_in_use(refined_map, num_clusters=num_masks),
            predictions=compared.predictions.detach(),
            projections=compared.projections.detach(),
        )

    @torch.no_grad()
    def refine(
        self,
        images: Float[Tensor, "b 3 h w"],
        superpixels: Int[Tensor, "b sh sw"],
        uniforms: Float[Tensor, "g k"],
        *,
        max_superpixels: int | None = None,
        c4: Float[Tensor, "b c rh rw"] | None = None,
    ) -> Int[Tensor, "b rh rw"]:
        """The refined map m of whole images, from the target's C4.

        Args:
            max_superpixels: ids are below this; None: below that of the shards that are trained on.
            c4: what `whole_c4` gave of the same images; None: it is computed.
        """
        how = self.refinement._replace(max_superpixels=max_superpixels or self.refinement.max_superpixels)
        if not how.needs_features:
            c4_size = (-(-images.shape[2] // C4_STRIDE), -(-images.shape[3] // C4_STRIDE))
            return unrefined(superpixels, how, num_clusters=uniforms.shape[1], c4_size=c4_size)
        c4 = self.whole_c4(images) if c4 is None else c4
        with torch.autocast(c4.device.type, enabled=False):
            return refine(c4, superpixels, how, uniforms=uniforms)

    @torch.no_grad()
    def whole_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rh rw"]:
        """The target's C4 of whole images, by train-mode statistics; batch norm's buffers are left alone."""
        with batch_norm_buffers_kept(self.target):
            c4: Tensor = self.target["backbone"].forward_c4(images)  # type: ignore[operator]
        return c4

    def _view_masks(
        self, refined_map: Tensor | None, batch: Batch, num_masks: int, *, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """m1 and m2 on the C5 grids of the views, (b, m, h5, w5)."""
        if refined_map is None:
            assert batch.view_superpixels is not None, "views came without their superpixels"
            first, second = (cell_areas(batch.view_superpixels[:, v], num_masks, size) for v in (0, 1))
            return first, second
        first, second = (
            align_label_map(
                refined_map,
                num_masks,
                crop_box=batch.crop_box[:, v],
                flipped=batch.flipped[:, v],
                size=size,
                aligned=self.objective.roi_aligned,
            )
            for v in (0, 1)
        )
        return first, second

    def _c5(self, network: nn.ModuleDict, views: Tensor) -> tuple[Tensor, Tensor]:
        return self._each(lambda images: network["backbone"](images).c5, views[:, 0], views[:, 1])

    def _each(self, function: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """A function of each view's part, on its own or, with `concatenate_views`, on both at once."""
        if not self.objective.concatenate_views:
            return function(first), function(second)
        both = function(torch.cat([first, second]))
        return both[: len(first)], both[len(first) :]

    def _pool(self, c5: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """h: C5 of each view averaged within each mask, (b, m, c)."""
        area = self.objective.min_pool_area
        first, second = (mask_pool(c5[v], masks[v], min_area=area).features for v in (0, 1))
        return first, second

    def _byol(
        self, online: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], present: Tensor, _: Tensor | None
    ) -> Compared:
        """Eqs. 4 and 5 over the masks that are in both views; only those go through the heads unless `rows: all`."""
        valid = present.all(1).flatten()
        every = self.objective.rows == "all"
        rows = torch.arange(len(valid), device=valid.device) if every else valid.nonzero().squeeze(1)
        q, z = self._heads([h.flatten(0, 1)[rows] for h in online], [h.flatten(0, 1)[rows] for h in target])
        both = byol_loss(q[0], z[1]) + byol_loss(q[1], z[0])
        return Compared(torch.where(valid[rows], both, 0.0).sum(), valid.sum(), q[0], z[0])

    def _contrast(
        self,
        online: tuple[Tensor, Tensor],
        target: tuple[Tensor, Tensor],
        present: Tensor,
        mask_uniforms: Tensor | None,
    ) -> Compared:
        """DetCon's loss over masks sampled in each view."""
        assert mask_uniforms is not None, "contrastive losses sample masks"
        ids = [sample_masks(present[:, v], mask_uniforms[:, v]) for v in (0, 1)]
        index = [i.unsqueeze(2) for i in ids]
        sampled = [
            [h[v].gather(1, index[v].expand(-1, -1, h[v].shape[2])).flatten(0, 1) for v in (0, 1)]
            for h in (online, target)
        ]
        q, z = self._heads(*sampled)
        shape = (*ids[0].shape, -1)
        loss_sum = contrastive_loss_sum(
            (q[0].view(shape), q[1].view(shape)),
            (z[0].view(shape), z[1].view(shape)),
            (ids[0], ids[1]),
            temperature=self.objective.temperature,
            gather=self.gather,
        )
        return Compared(loss_sum, torch.tensor(ids[0].numel(), device=q[0].device), q[0], z[0])

    def _heads(self, online: list[Tensor], target: list[Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """q_θ(z_θ) and z_ξ of both views' rows; for NT-Xent, z_θ twice."""
        projections = self._each(self.online["projector"], *online)
        if self.objective.loss == "nt_xent":
            return projections, projections
        with torch.no_grad():
            targets = self._each(self.target["projector"], *target)
        return self._each(self.predictor, *projections), targets


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
