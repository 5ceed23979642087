"""R2O: an online and a target network, refinement by the target, and the loss on refined masks (Figure 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from train.r2o.batch_norms import batch_norm_buffers_kept, batches_counted_at_once
from train.r2o.ema import update_target
from train.r2o.loss import Gather, byol_loss, contrastive_loss_sum, only_here, sample_masks
from train.r2o.masks import align_label_map, cell_areas, hard_masks, mask_pool
from train.r2o.refine import Refinement, clusters_in_use, refine, unrefined

C4_STRIDE, C5_STRIDE = 16, 32


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
    hard_masks: bool
    rows: str
    min_pool_area: float
    min_valid_area: float
    mask_weight: str
    directions: str
    roi_aligned: bool
    masks_per_view: int
    temperature: float
    concatenate_views: bool


class Output(NamedTuple):
    """What one forward pass gives. Sums and counts are of the local batch, so that ranks can be pooled.

    `valid`: masks that are in both views. `num_masks`: what the loss was taken of. `weight_sum`: what `loss_sum` is to
    be divided by, their number or the sum of their weights. `refined_map` is None where superpixels were cropped with
    the views instead.
    """

    loss_sum: Float[Tensor, ""]
    num_masks: Int[Tensor, ""]
    weight_sum: Num[Tensor, ""]
    valid: Bool[Tensor, "b m"]
    refined_map: Int[Tensor, "b rh rw"] | None
    clusters_in_use: Float[Tensor, " b"]
    predictions: Float[Tensor, "r d"]
    projections: Float[Tensor, "r d"]


class Compared(NamedTuple):
    """The loss over a number of masks, by their weights, and view 1's rows that it was taken of."""

    loss_sum: Float[Tensor, ""]
    num_masks: Int[Tensor, ""]
    weight_sum: Num[Tensor, ""]
    predictions: Float[Tensor, "r d"]
    projections: Float[Tensor, "r d"]


# Within the context, batch norms of the module take their batch for so many parts, each with statistics of its own.
ByPart = Callable[[nn.Module, int], AbstractContextManager[None]]


class R2O(nn.Module):
    """Online network (backbone, projector, predictor) and its target (backbone, projector).

    Args:
        backbone: returns `c4` and `c5`; `forward_c4` gives C4 alone.
        predictor: None for `nt_xent`.
    Attributes:
        gather: what all ranks hold of a tensor.
        by_part: where batch norms can do that. Both views then pass together, and ranks exchange half as often.
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
        self.by_part: ByPart | None = None

    def forward(
        self,
        batch: Batch,
        uniforms: Float[Tensor, "g k"],
        mask_uniforms: Float[Tensor, "b 2 n"] | None = None,
        target_ema: float | None = None,
    ) -> Output:
        """Refine, align, pool and compare (Sections 3.1, 3.2). K is `uniforms.shape[1]`.

        Args:
            mask_uniforms: random numbers in [0, 1) that sample masks for the contrastive losses.
            target_ema: τ by which the target moves once it has made the masks, before it gives the loss's targets
                (authors' release); None: it does not move here.
        """
        refined_map, num_masks = None, self.refinement.max_superpixels
        if self.objective.view_masks == "refined":
            refined_map = self.refine(batch.images, batch.superpixels, uniforms)
            num_masks = self.refinement.num_masks(uniforms.shape[1])
        if target_ema is not None:
            update_target(self.target, self.online, target_ema=target_ema)
        masks = self._view_masks(refined_map, batch, num_masks)
        areas = masks.sum((2, 3)).unflatten(0, (2, -1)).transpose(0, 1)
        present = areas > self.objective.min_valid_area
        # The host waits for the number of masks here, where a device has little left to do, and not after the networks.
        rows = self._rows(present) if self.objective.loss == "byol" else None
        online = self._c5(self.online, batch.views)
        with torch.no_grad():
            target = online if self.objective.loss == "nt_xent" else self._c5(self.target, batch.views)
        h = [mask_pool(c5, masks, min_area=self.objective.min_pool_area).features for c5 in (online, target)]
        if rows is not None:
            compared = self._byol(h[0], h[1], areas, rows)
        else:
            compared = self._contrast(h[0], h[1], present, mask_uniforms)
        return Output(
            loss_sum=compared.loss_sum / (2 if self.objective.directions == "mean" else 1),
            num_masks=compared.num_masks,
            weight_sum=compared.weight_sum,
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
        return refine(self.whole_c4(images) if c4 is None else c4, superpixels, how, uniforms=uniforms)

    @torch.no_grad()
    def whole_c4(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rh rw"]:
        """The target's C4 of whole images, by train-mode statistics; batch norm's buffers are left alone."""
        with batch_norm_buffers_kept(self.target):
            c4: Tensor = self.target["backbone"].forward_c4(images)  # type: ignore[operator]
        return c4

    def _view_masks(self, refined_map: Tensor | None, batch: Batch, num_masks: int) -> Float[Tensor, "two_b m h5 w5"]:
        """m1 of all images, then m2, on the C5 grids of the views."""
        size = (-(-batch.views.shape[3] // C5_STRIDE), -(-batch.views.shape[4] // C5_STRIDE))
        if refined_map is None:
            assert batch.view_superpixels is not None, "views came without their superpixels"
            shares = cell_areas(_by_view(batch.view_superpixels), num_masks, size)
            return hard_masks(shares) if self.objective.hard_masks else shares
        return align_label_map(
            torch.cat([refined_map, refined_map]),
            num_masks,
            crop_box=_by_view(batch.crop_box),
            flipped=_by_view(batch.flipped),
            size=size,
            aligned=self.objective.roi_aligned,
        )

    def _c5(self, network: nn.ModuleDict, views: Float[Tensor, "b 2 3 vh vw"]) -> Float[Tensor, "two_b c h5 w5"]:
        """C5 of all first views, then of all second ones."""
        backbone = network["backbone"]
        with batches_counted_at_once(backbone, 1 if self.objective.concatenate_views else 2):
            return self._each(backbone, views[:, 0], views[:, 1], result=lambda features: features.c5)

    def _each(
        self, module: nn.Module, first: Tensor, second: Tensor, *, result: Callable[[Any], Tensor] = lambda out: out
    ) -> Tensor:
        """What a module makes of the first views' part, then of the second ones', which has statistics of its own.

        With `concatenate_views` they share the statistics.
        """
        mixed, by_part = self.objective.concatenate_views, self.by_part
        if not mixed and by_part is None:
            return torch.cat([result(module(first)), result(module(second))])
        with nullcontext() if mixed or by_part is None else by_part(module, 2):
            return result(module(torch.cat([first, second])))

    def _rows(self, present: Bool[Tensor, "b 2 m"]) -> Int[Tensor, " r"]:
        """Which of the B × K masks go through the heads: those in both views, or with `rows: all` all of them."""
        valid = present.all(1).flatten()
        if self.objective.rows == "all":
            return torch.arange(len(valid), device=valid.device)
        return valid.nonzero().squeeze(1)

    def _byol(
        self,
        online: Float[Tensor, "two_b m c"],
        target: Float[Tensor, "two_b m c"],
        areas: Float[Tensor, "b 2 m"],
        rows: Int[Tensor, " r"],
    ) -> Compared:
        """Eqs. 4 and 5 over the masks that are in both views."""
        valid = (areas > self.objective.min_valid_area).all(1)
        q, z = self._heads(*(_halves(_chosen(h, rows)) for h in (online, target)))
        one, other = _halves(byol_loss(q, torch.cat(_halves(z)[::-1])))
        both = torch.where(valid.flatten()[rows], one + other, one.new_zeros(()))
        num_masks, how = valid.sum(), self.objective.mask_weight
        if how == "equal":
            return Compared(both.sum(), num_masks, num_masks, _halves(q)[0], _halves(z)[0])
        weights = valid * (areas.mean(1) if how == "area" else 1 / valid.sum(1, keepdim=True).clamp(min=1))
        loss_sum = (weights.flatten()[rows] * both).sum()
        return Compared(loss_sum, num_masks, weights.sum(), _halves(q)[0], _halves(z)[0])

    def _contrast(
        self,
        online: Float[Tensor, "two_b m c"],
        target: Float[Tensor, "two_b m c"],
        present: Bool[Tensor, "b 2 m"],
        mask_uniforms: Tensor | None,
    ) -> Compared:
        """DetCon's loss over masks sampled in each view."""
        assert mask_uniforms is not None, "contrastive losses sample masks"
        ids = sample_masks(_by_view(present), _by_view(mask_uniforms))
        sampled = [h.gather(1, ids.unsqueeze(2).expand(-1, -1, h.shape[2])).flatten(0, 1) for h in (online, target)]
        q, z = (_halves(out.view(*ids.shape, -1)) for out in self._heads(*map(_halves, sampled)))
        loss_sum = contrastive_loss_sum(q, z, _halves(ids), temperature=self.objective.temperature, gather=self.gather)
        count = torch.full((), ids.numel() // 2, device=ids.device)
        return Compared(loss_sum, count, count, q[0].flatten(0, 1), z[0].flatten(0, 1))

    def _heads(self, online: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """q_θ(z_θ) and z_ξ of the first views' rows, then of the second ones'; for NT-Xent, z_θ twice."""
        projections = self._each(self.online["projector"], *online)
        if self.objective.loss == "nt_xent":
            return projections, projections
        with torch.no_grad():
            targets = self._each(self.target["projector"], *target)
        return self._each(self.predictor, *_halves(projections)), targets


def _by_view(values: Tensor) -> Tensor:
    """(b, 2, …) → (2b, …): of all first views, then of all second ones."""
    return values.transpose(0, 1).flatten(0, 1)


def _halves(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first views, and of the second ones; each may be empty."""
    half = len(values) // 2
    return values[:half], values[half:]


def _chosen(pooled: Float[Tensor, "two_b m c"], rows: Int[Tensor, " r"]) -> Float[Tensor, "two_r c"]:
    """The rows of these masks in each view."""
    by_view = pooled.view(2, -1, pooled.shape[2])
    return by_view.index_select(1, rows).flatten(0, 1)
