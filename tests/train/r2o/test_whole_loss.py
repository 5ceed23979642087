"""Losses and gradients of the whole forward pass against NumPy in float64, where nothing is like anything else.

The target is not the online network, view 1 is not view 2, and masks differ by view. Gradients are compared with
differences of the NumPy loss, so that it matters through which network they flow.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from tests.train.r2o.test_loss import numpy_byol, numpy_detcon
from train.config.pretrain import ObjectiveSettings, RefineSettings
from train.engine.build import objective_of, refinement_of
from train.models.backbone import Features
from train.models.heads import Head
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O, Batch
from train.r2o.refine import refine

IMAGES, CLUSTERS, SAMPLES, LABELS = 4, 7, 5, 6
Weights = dict[str, np.ndarray]


class MeanBackbone(nn.Module):
    """C4 and C5 are linear in the mean colours of 16 × 16 and 32 × 32 pixels; C5 then goes through tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.w4, self.w5 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(6, 3))

    def forward_c4(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ck,bkhw->bchw", self.w4, nn.functional.avg_pool2d(images, 16))

    def forward(self, images: torch.Tensor) -> Features:
        c5 = torch.einsum("ck,bkhw->bchw", self.w5, nn.functional.avg_pool2d(images, 32)).tanh()
        return Features(self.forward_c4(images), c5)


def made_model(**objective: object) -> R2O:
    torch.manual_seed(5)
    heads = Head(6, hidden_size=16, out_size=4), Head(4, hidden_size=15, out_size=4)
    model = R2O(
        MeanBackbone(),
        heads[0],
        None if objective["loss"] == "nt_xent" else heads[1],
        refinement=refinement_of(RefineSettings(clustering_group_size=2), max_superpixels=16),
        objective=objective_of(ObjectiveSettings(masks_per_view=SAMPLES, **objective), concatenate_views=False),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return model.train()


def made_batch() -> Batch:
    """Some boxes have nothing in common, so that some masks are in one view alone."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(IMAGES, 2, 2, generator=generator) * 0.5
    superpixels = torch.arange(16).view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    labels = torch.randint(0, LABELS, (IMAGES, 2, 12, 12), generator=generator)
    labels[0, 0] = labels[0, 0] // 2  # of image 0, labels from 3 on are in the second view alone
    return Batch(
        images=torch.randn(IMAGES, 3, 64, 64, generator=generator, dtype=torch.float64),
        superpixels=superpixels.expand(IMAGES, 64, 64),
        views=torch.randn(IMAGES, 2, 3, 96, 96, generator=generator, dtype=torch.float64)
        + 2 * torch.randn(IMAGES, 2, 3, 1, 1, generator=generator, dtype=torch.float64),
        crop_box=torch.cat([low, low + 0.3 + 0.2 * torch.rand(IMAGES, 2, 2, generator=generator)], 2),
        flipped=torch.rand(IMAGES, 2, generator=generator) < 0.5,
        view_superpixels=labels.repeat_interleave(8, 2).repeat_interleave(8, 3),
    )


def masks_of(batch: Batch, refined_map: torch.Tensor | None) -> np.ndarray:
    """Image × view × mask × 3 × 3, of the refined map or of the views' own superpixels."""
    if refined_map is None:
        one_hot = np.eye(LABELS)[batch.view_superpixels.numpy()]  # b 2 96 96 m
        return one_hot.reshape(IMAGES, 2, 3, 32, 3, 32, LABELS).mean((3, 5)).transpose(0, 1, 4, 2, 3)
    masks = np.zeros((IMAGES, 2, CLUSTERS, 3, 3))
    for b, v, k in itertools.product(range(IMAGES), (0, 1), range(CLUSTERS)):
        whole = (refined_map[b] == k).double()[None, None]
        aligned = roi_align(whole, [4 * batch.crop_box[b, v].double()[None]], output_size=(3, 3), aligned=True)[0, 0]
        masks[b, v, k] = (aligned.flip(1) if batch.flipped[b, v] else aligned).numpy()
    return masks


def head(w: Weights, name: str, rows: np.ndarray) -> np.ndarray:
    hidden = rows @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"]
    normal = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    return np.maximum(normal * w[f"{name}.1.weight"] + w[f"{name}.1.bias"], 0) @ w[f"{name}.3.weight"].T


def pooled(w: Weights, network: str, batch: Batch, masks: np.ndarray) -> np.ndarray:
    """h of image, view and mask: C5 averaged by area."""
    cells = batch.views.numpy().reshape(IMAGES, 2, 3, 3, 32, 3, 32).mean((4, 6))
    c5 = np.tanh(np.einsum("ck,bvkhw->bvchw", w[f"{network}.backbone.w5"], cells))
    return np.einsum("bvmhw,bvchw->bvmc", masks, c5) / np.maximum(masks.sum((3, 4))[..., None], 1e-30)


def plain_byol(w: Weights, batch: Batch, masks: np.ndarray) -> tuple[float, int]:
    """Eqs. 4 and 5 over the masks in both views, and how many those are."""
    valid = (masks.sum((3, 4)) > 1e-3).all(1)
    h = {network: pooled(w, network, batch, masks) for network in ("online", "target")}
    q = [head(w, "predictor", head(w, "online.projector", h["online"][:, v][valid])) for v in (0, 1)]
    z = [head(w, "target.projector", h["target"][:, v][valid]) for v in (0, 1)]
    return float((numpy_byol(q[0], z[1]) + numpy_byol(q[1], z[0])).sum()), int(valid.sum())


def plain_contrast(w: Weights, batch: Batch, masks: np.ndarray, uniforms: np.ndarray, loss: str) -> tuple[float, int]:
    """DetCon's loss over masks sampled in each view among those that are there; NT-Xent has neither q nor target."""
    ids = [np.zeros((IMAGES, SAMPLES), int) for _ in (0, 1)]
    for b, v, n in itertools.product(range(IMAGES), (0, 1), range(SAMPLES)):
        there = np.flatnonzero(masks[b, v].sum((1, 2)) > 1e-3)
        ids[v][b, n] = there[int(uniforms[b, v, n] * len(there))]
    rows = {
        network: [
            np.concatenate([h[b, v][ids[v][b]] for b in range(IMAGES)]) for v in (0, 1)
        ] for network in ("online", "target") for h in [pooled(w, network, batch, masks)]
    }  # fmt: skip
    projections = [head(w, "online.projector", r) for r in rows["online"]]
    if loss == "nt_xent":
        q, z = projections, projections
    else:
        q = [head(w, "predictor", p) for p in projections]
        z = [head(w, "target.projector", r) for r in rows["target"]]
    q, z = ([x.reshape(IMAGES, SAMPLES, -1) for x in both] for both in (q, z))
    return numpy_detcon(q, z, ids, 0.1), IMAGES * SAMPLES


@pytest.mark.parametrize(
    ("loss", "view_masks"),
    [("byol", "refined"), ("byol", "superpixels"), ("detcon_b", "superpixels"), ("detcon_b", "refined"),
     ("nt_xent", "refined")],
)  # fmt: skip
def test_loss_and_gradients_equal_plain_numpy(loss: str, view_masks: str) -> None:
    model, batch = made_model(loss=loss, view_masks=view_masks), made_batch()
    seeds = seeding_uniforms(CLUSTERS, seed=0, step=0, first_group=0, num_groups=2)
    uniforms = torch.rand(IMAGES, 2, SAMPLES, generator=torch.Generator().manual_seed(2))
    output = model(batch, seeds, None if loss == "byol" else uniforms)
    output.loss_sum.backward()
    masks = masks_of(batch, output.refined_map)
    weights = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}

    def plain(w: Weights) -> tuple[float, int]:
        return (
            plain_byol(w, batch, masks) if loss == "byol" else plain_contrast(w, batch, masks, uniforms.numpy(), loss)
        )

    expected, count = plain(weights)
    in_both = (masks.sum((3, 4)) > 1e-3).all(1)
    np.testing.assert_array_equal(output.valid[:, : in_both.shape[1]].numpy(), in_both)
    assert 0 < in_both.sum() < in_both.size
    assert output.num_masks == count
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif not name.endswith("w4"):  # C4 is the target's
            way = rng.normal(size=parameter.shape)
            ends = [plain({**weights, name: weights[name] + sign * 1e-5 * way})[0] for sign in (1, -1)]
            slope = float((parameter.grad.numpy() * way).sum())
            assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-3, abs=1e-4), name


def test_masks_are_the_target_s_and_not_the_online_network_s() -> None:
    model, batch = made_model(loss="byol"), made_batch()
    seeds = seeding_uniforms(CLUSTERS, seed=0, step=0, first_group=0, num_groups=2)
    cells = batch.images.numpy().reshape(IMAGES, 3, 4, 16, 4, 16).mean((3, 5))
    online, target = (
        refine(
            torch.from_numpy(np.einsum("ck,bkhw->bchw", network["backbone"].w4.detach().numpy(), cells)),
            batch.superpixels,
            model.refinement,
            uniforms=seeds,
        )
        for network in (model.online, model.target)
    )
    found = model(batch, seeds).refined_map
    assert torch.equal(found, target)
    assert not torch.equal(found, online)
