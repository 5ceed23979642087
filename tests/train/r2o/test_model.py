"""The whole method on a small network against a plain reference."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from train.config.pretrain import ModelSettings, ObjectiveSettings, RefineSettings
from train.engine.build import objective_of, refinement_of
from train.models.backbone import build_backbone
from train.models.heads import Head
from train.r2o.ema import update_target
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O, Batch, Objective
from train.r2o.refine import Refinement

pytestmark = pytest.mark.usefixtures("shallow")


def small_model(
    group_size: int = 4,
    objective: dict[str, object] | None = None,
    *,
    concatenate_views: bool = False,
    **refinement: object,
) -> R2O:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", seed=0)
    heads = Head(512, hidden_size=32, out_size=16), Head(16, hidden_size=32, out_size=16)
    refine = RefineSettings(clustering_group_size=group_size, kmeans_iterations=5, **refinement)
    return R2O(
        backbone,
        *heads,
        refinement=refinement_of(refine, max_superpixels=16),
        objective=objective_of(ObjectiveSettings(**objective or {}), concatenate_views=concatenate_views),
    ).train()


def batch_of(size: int = 4, *, boxes: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(1)
    superpixels = torch.arange(16).view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
    if boxes is None:
        low = torch.rand(size, 2, 2, generator=generator) * 0.4
        boxes = torch.cat([low, low + 0.4 + 0.2 * torch.rand(size, 2, 2, generator=generator)], 2)
    return Batch(
        images=torch.randn(size, 3, 64, 64, generator=generator),
        superpixels=superpixels.expand(size, 64, 64),
        views=torch.randn(size, 2, 3, 64, 64, generator=generator),
        crop_box=boxes,
        flipped=torch.rand(size, 2, generator=generator) < 0.5,
    )


def seeds(num_clusters: int, groups: int = 1) -> torch.Tensor:
    return seeding_uniforms(num_clusters, seed=0, step=0, first_group=0, num_groups=groups)


def plain_reference(model: R2O, batch: Batch, refined_map: torch.Tensor, num_clusters: int) -> torch.Tensor:
    """L_repr (Eqs. 4, 5) mask by mask, with loops, from the networks' C5, in the precision of the views."""
    with torch.no_grad():
        target_c5 = [model.target["backbone"](batch.views[:, v]).c5 for v in (0, 1)]
    online_c5 = [model.online["backbone"](batch.views[:, v]).c5 for v in (0, 1)]
    pooled: dict[str, list[list[torch.Tensor]]] = {"online": [[], []], "target": [[], []]}
    for b in range(len(batch.images)):
        for k in range(num_clusters):
            mask = (refined_map[b] == k).to(batch.views.dtype)[None, None]
            in_view = []
            for v in (0, 1):
                box = batch.crop_box[b, v].to(mask.dtype) * refined_map.shape[1]
                aligned = roi_align(mask, [box[None]], output_size=(2, 2), aligned=True)[0, 0]
                in_view.append(aligned.flip(1) if batch.flipped[b, v] else aligned)
            if min(m.sum().item() for m in in_view) <= 1e-3:
                continue
            for v in (0, 1):
                for name, c5 in (("online", online_c5), ("target", target_c5)):
                    pooled[name][v].append((c5[v][b] * in_view[v]).sum((1, 2)) / in_view[v].sum())
    q = [model.predictor(model.online["projector"](torch.stack(pooled["online"][v]))) for v in (0, 1)]
    with torch.no_grad():
        z = [model.target["projector"](torch.stack(pooled["target"][v])) for v in (0, 1)]
    distance = [(F.normalize(q[v], dim=1) - F.normalize(z[1 - v], dim=1)).square().sum(1) for v in (0, 1)]
    return (distance[0] + distance[1]).mean()


@pytest.mark.parametrize("num_clusters", [1, 3, 20])
def test_loss_and_gradients_equal_a_plain_reference(num_clusters: int) -> None:
    model, batch = small_model(), batch_of()
    reference = copy.deepcopy(model)
    output = model(batch, seeds(num_clusters))
    loss = output.loss_sum / output.num_masks
    loss.backward()
    expected = plain_reference(reference, batch, output.refined_map, num_clusters)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-3, msg=name)
        else:
            assert ours.grad is None, name


def test_one_cluster_is_byol() -> None:
    """K = 1: one mask, the whole image, so mask pooling is global pooling (A.8 says as much of the worst case)."""
    model, batch = small_model(), batch_of()
    output = model(batch, seeds(1))
    assert output.num_masks.item() == len(batch.images)
    pooled = F.adaptive_avg_pool2d(model.online["backbone"](batch.views[:, 0]).c5, 1).flatten(1)
    prediction = model.predictor(model.online["projector"](pooled))
    torch.testing.assert_close(output.predictions, prediction.detach(), atol=1e-4, rtol=1e-4)


def test_one_cluster_stays_byol_over_five_float64_steps() -> None:
    """Loss and gradients against global average pooling, written out, for five steps of SGD and EMA."""
    model = small_model().double()
    byol = copy.deepcopy(model)
    for step in range(5):
        batch = batch_of()
        batch = batch._replace(
            images=batch.images.double(), views=(batch.views + 0.1 * step).double(), superpixels=batch.superpixels
        )
        output = model(batch, seeds(1))
        loss = output.loss_sum / output.num_masks
        online = [byol.online["backbone"](batch.views[:, v]).c5.mean((2, 3)) for v in (0, 1)]
        with torch.no_grad():
            z = [byol.target["projector"](byol.target["backbone"](batch.views[:, v]).c5.mean((2, 3))) for v in (0, 1)]
        q = [byol.predictor(byol.online["projector"](h)) for h in online]
        expected = sum((F.normalize(q[v], dim=1) - F.normalize(z[1 - v], dim=1)).square().sum(1) for v in (0, 1)).mean()
        assert abs(loss.item() - expected.item()) < 1e-6
        for one, total in ((model, loss), (byol, expected)):
            one.zero_grad()
            total.backward()
        for (name, a), b in zip(model.named_parameters(), byol.parameters(), strict=True):
            if a.requires_grad:
                assert (a.grad - b.grad).abs().max() < 1e-6, (step, name)
        for one in (model, byol):
            with torch.no_grad():
                for p in one.parameters():
                    if p.requires_grad:
                        p -= 0.01 * p.grad
            update_target(one.target, one.online, target_ema=0.9)


def test_the_byol_baseline_is_one_cluster_without_its_features() -> None:
    one, batch = small_model(), batch_of()
    byol = small_model(clustering="none", regions="image")
    ours, theirs = one(batch, seeds(1)), byol(batch, seeds(7))
    torch.testing.assert_close(ours.loss_sum, theirs.loss_sum, atol=1e-5, rtol=1e-5)
    assert theirs.valid.shape == (4, 1)


def test_all_rows_give_the_loss_of_the_valid_ones_when_all_are_valid() -> None:
    batch = batch_of(boxes=torch.tensor([[[0.0, 0.0, 1.0, 1.0]] * 2] * 4))
    valid, every = (small_model(objective={"rows": rows})(batch, seeds(1)) for rows in ("valid", "all"))
    torch.testing.assert_close(valid.loss_sum, every.loss_sum)


@pytest.mark.parametrize("num_clusters", [3, 20])
def test_with_all_rows_only_valid_ones_enter_the_loss(num_clusters: int) -> None:
    output = small_model(objective={"rows": "all"})(batch_of(), seeds(num_clusters))
    assert output.predictions.shape[0] == 4 * num_clusters
    assert output.num_masks == output.valid.sum()
    assert output.loss_sum <= 8 * output.num_masks


@pytest.mark.parametrize("loss", ["detcon_b", "nt_xent"])
def test_contrastive_losses_against_the_networks_own_rows(loss: str) -> None:
    """DetCon-B with superpixels cropped with the views; NT-Xent with refined masks (A.4)."""
    view_masks = "superpixels" if loss == "detcon_b" else "refined"
    model = small_model(objective={"loss": loss, "view_masks": view_masks, "masks_per_view": 6})
    if loss == "nt_xent":
        model.predictor = nn.Identity()
    batch = batch_of()
    batch = batch._replace(view_superpixels=batch.superpixels.unsqueeze(1).expand(-1, 2, -1, -1))
    uniforms = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0))
    output = model(batch, seeds(5), uniforms)
    output.loss_sum.backward()
    assert output.num_masks == output.weight_sum == 24
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert (output.refined_map is None) == (loss == "detcon_b")
    # an untrained network cannot tell 2 · 24 samples apart: about ln 47 a direction, times the share of distinct masks
    assert 0.3 < output.loss_sum.item() / 24 < 2 * math.log(47) + 10


def test_hard_masks_give_each_cell_of_a_view_to_one_superpixel() -> None:
    """Views of 64 px have 2 × 2 cells. Features are pooled, and presence is judged, by the hard masks."""
    names = {"loss": "detcon_b", "view_masks": "superpixels", "masks_per_view": 6}
    soft, hard = (small_model(objective=names | {"hard_masks": choice}) for choice in (False, True))
    labels = torch.zeros(4, 2, 64, 64, dtype=torch.int64)
    labels[:, 0, :, 20:] = 5  # 12 of 32 columns of the left cells, all of the right ones
    labels[:, 1, :, :40] = 5
    batch = batch_of()._replace(view_superpixels=labels)
    uniforms = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(0))
    (left, right), ids = hard._view_masks(None, batch, 16)[[0, 4]], [0, 5]
    assert left[ids].tolist() == [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]
    assert right[ids].tolist() == [[[0, 1], [0, 1]], [[1, 0], [1, 0]]]
    assert soft._view_masks(None, batch, 16)[0, ids, 0].tolist() == [[0.625, 0], [0.375, 1]]
    labels[:, :, :, 33:] = 0
    for model, present in ((soft, [0, 5]), (hard, [0])):
        assert model(batch, seeds(5), uniforms).valid[0].nonzero().flatten().tolist() == present


def test_release_switches_are_the_release_s_numbers() -> None:
    batch = batch_of()
    mixed = small_model(concatenate_views=True)(batch, seeds(3))
    apart = small_model()(batch, seeds(3))
    assert torch.equal(mixed.refined_map, apart.refined_map)
    assert not torch.allclose(mixed.loss_sum, apart.loss_sum, atol=1e-3)
    reference = small_model()
    both = torch.cat([batch.views[:, 0], batch.views[:, 1]])
    c5 = reference.online["backbone"](both).c5
    theirs = small_model(concatenate_views=True)
    torch.testing.assert_close(theirs._c5(theirs.online, batch.views), c5)


def test_disjoint_views_share_no_mask_unless_a_cluster_spans_both() -> None:
    left, right = [0.0, 0.0, 0.45, 1.0], [0.55, 0.0, 1.0, 1.0]
    batch = batch_of(boxes=torch.tensor([[left, right]] * 4))
    output = small_model()(batch, seeds(60))
    in_both = [
        set(output.refined_map[b][:, :2].unique().tolist()) & set(output.refined_map[b][:, 2:].unique().tolist())
        for b in range(4)
    ]
    assert output.num_masks.item() == sum(map(len, in_both))


def test_the_whole_image_pass_leaves_the_target_s_buffers_alone() -> None:
    model, batch = small_model(), batch_of()
    before = {name: b.clone() for name, b in model.target.named_buffers()}
    model.refine(batch.images, batch.superpixels, seeds(4))
    for name, buffer in model.target.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model(batch, seeds(4))
    assert not torch.equal(model.target["backbone"].bn1.running_mean, before["backbone.bn1.running_mean"])


def test_masks_at_several_k_share_one_pass_over_the_images() -> None:
    model, batch = small_model(), batch_of()
    c4, other = model.whole_c4(batch.images), torch.zeros_like(batch.images)
    for k in (4, 9):
        alone = model.refine(batch.images, batch.superpixels, seeds(k))
        assert torch.equal(model.refine(other, batch.superpixels, seeds(k), c4=c4), alone)


def test_the_target_gets_no_gradient_and_starts_as_the_online_network() -> None:
    model = small_model()
    assert all(not p.requires_grad for p in model.target.parameters())
    for ours, theirs in zip(model.target.parameters(), model.online.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("rows", [0, 1])
def test_heads_take_no_row_and_one_row(rows: int) -> None:
    head = Head(8, hidden_size=6, out_size=4).train()
    out = head(torch.randn(rows, 8))
    out.sum().backward()
    assert out.shape == (rows, 4)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())
    assert isinstance(head[1], nn.BatchNorm1d)
    assert head[1].num_batches_tracked.item() == 0


def test_every_field_has_the_name_of_its_setting() -> None:
    assert set(Refinement._fields) == {"max_superpixels", *RefineSettings.model_fields}
    assert set(Objective._fields) == {"concatenate_views", *ObjectiveSettings.model_fields}
    assert "concatenate_views" in ModelSettings.model_fields
    assert not Refinement._field_defaults
    assert not Objective._field_defaults
