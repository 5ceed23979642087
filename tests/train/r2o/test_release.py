"""What the authors' release does otherwise, and how masks weigh: each switch against the step written out in float64.

The oracle follows the release's forward pass (model/r2o_model.py, model/basic_modules.py, trainer/r2o_trainer.py of
KKallidromitis/r2o) mask by mask, with its heads by their formulas.
"""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from tests.train.r2o.test_model import batch_of, seeds
from train.config.batches import plan_batches
from train.config.data import AugmentSettings, DataSettings
from train.config.pretrain import PretrainSettings
from train.data.device import LocalBatch
from train.data.loader import HostBatch
from train.data.views import draw_geometry
from train.distributed.world import World
from train.engine import method
from train.engine.build import build_model, build_optimizer, build_training, unwrapped
from train.engine.step import train_step
from train.r2o.ema import update_target
from train.r2o.model import R2O, Batch

pytestmark = pytest.mark.usefixtures("shallow")

WORLD = World(0, 1, torch.device("cpu"))
K = 9  # so that some masks are in one view alone, and some cover less than a cell
DEFAULT: dict[str, Any] = {
    "model.head_output_bias": False, "model.concatenate_views": False, "objective.rows": "valid",
    "objective.min_pool_area": 0.0, "objective.roi_aligned": True, "objective.directions": "sum",
    "objective.mask_weight": "equal", "objective.min_valid_area": 1e-3,
}  # fmt: skip
RELEASE = {
    "model.head_output_bias": True, "model.concatenate_views": True, "objective.rows": "all",
    "objective.min_pool_area": 1.0, "objective.roi_aligned": False, "objective.directions": "mean",
}  # fmt: skip
OURS = [
    {"objective.mask_weight": "image"}, {"objective.mask_weight": "area"}, {"objective.min_valid_area": 0.4},
    {"objective.mask_weight": "area", "objective.rows": "all", "objective.directions": "mean"},
]  # fmt: skip
CASES = [{}, *({key: value} for key, value in RELEASE.items()), RELEASE, *OURS]


def settings_with(changed: dict[str, Any], **more: Any) -> PretrainSettings:
    nested: dict[str, Any] = {
        "epochs": 2,
        "global_batch_size": 4,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
        "model": {"backbone": "resnet18", "head_hidden_size": 32, "projection_size": 16},
        "refine": {"clustering_group_size": 4},
        "curriculum": {"schedule": "constant", "initial_num_clusters": K, "hold_epochs": 0},
        "objective": {},
        **more,
    }
    for key, value in changed.items():
        section, name = key.split(".")
        nested[section][name] = value
    return PretrainSettings.model_validate(nested)


def model_with(settings: PretrainSettings) -> R2O:
    """In float64, with a target of its own."""
    model = build_model(settings, max_superpixels=16).double().train()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in model.target.parameters():
            p += 0.05 * p.std(correction=0) * torch.randn_like(p)
    return model


def in_double(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.double(), views=batch.views.double())


def by_formula(head: nn.Sequential, rows: Tensor) -> Tensor:
    """Linear, batch norm over the rows, ReLU, linear."""
    first, norm, _, last = head
    hidden = rows @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt() * norm.weight + norm.bias
    out = hidden.clamp(min=0) @ last.weight.T
    return out if last.bias is None else out + last.bias


def release_loss(model: R2O, batch: Batch, refined_map: Tensor, how: dict[str, Any]) -> Tensor:
    """The loss of one batch, mask by mask."""
    apart = not how["model.concatenate_views"]

    def of_both(function: Any, one: Tensor, other: Tensor) -> list[Tensor]:
        """Each view alone, or both in one batch whose statistics they share."""
        return [function(one), function(other)] if apart else list(function(torch.cat([one, other])).chunk(2))

    def c5(network: Any) -> list[Tensor]:
        return of_both(lambda x: network["backbone"](x).c5, batch.views[:, 0], batch.views[:, 1])

    aligned, size = how["objective.roi_aligned"], refined_map.shape[1]
    masks = torch.zeros(2, 4, K, 2, 2, dtype=torch.float64)
    for v in (0, 1):
        for b in range(4):
            one_hot = torch.stack([(refined_map[b] == k).double() for k in range(K)])[None]
            box = batch.crop_box[b, v].double() * size
            found = roi_align(one_hot, [box[None]], output_size=(2, 2), aligned=aligned)[0]
            masks[v, b] = found.flip(2) if batch.flipped[b, v] else found
    area = masks.sum((3, 4))
    exists = (area > how["objective.min_valid_area"]).all(0)
    weight = exists.double()
    if how["objective.mask_weight"] == "image":
        weight = torch.stack([w / max(float(w.sum()), 1.0) for w in weight])
    if how["objective.mask_weight"] == "area":
        weight = weight * (area[0] + area[1]) / 2  # the release's data.weight: true
    chosen = [(b, k) for b in range(4) for k in range(K) if exists[b, k] or how["objective.rows"] == "all"]
    with torch.no_grad():
        theirs = c5(model.target)
    pooled = []
    for features in (c5(model.online), theirs):
        for v in (0, 1):
            rows = []
            for b, k in chosen:
                total = (features[v][b] * masks[v, b, k]).sum((1, 2))
                rows.append(total / max(float(area[v, b, k]), how["objective.min_pool_area"], 1e-30))
            pooled.append(torch.stack(rows))
    z = of_both(lambda rows: by_formula(model.online["projector"], rows), *pooled[:2])
    q = of_both(lambda rows: by_formula(model.predictor, rows), *z)  # type: ignore[arg-type]
    with torch.no_grad():
        targets = of_both(lambda rows: by_formula(model.target["projector"], rows), *pooled[2:])
    unit = lambda x: x / x.norm(dim=1, keepdim=True)  # noqa: E731
    w = torch.stack([weight[b, k] for b, k in chosen])
    both = [(((unit(q[v]) - unit(targets[1 - v])) ** 2).sum(1) * w).sum() / w.sum() for v in (0, 1)]
    return (both[0] + both[1]) / (2 if how["objective.directions"] == "mean" else 1)


@pytest.mark.parametrize("changed", CASES, ids=lambda c: " ".join(map(str, c)) if len(c) < 6 else "release")
def test_each_switch_gives_the_numbers_of_the_loss_written_out(changed: dict[str, Any]) -> None:
    how, batch = {**DEFAULT, **changed}, in_double(batch_of())
    model = model_with(settings_with(changed))
    has_bias = [head[3].bias is not None for head in (model.online["projector"], model.predictor)]  # type: ignore
    assert has_bias == [how["model.head_output_bias"]] * 2
    reference = copy.deepcopy(model)
    output = model(batch, seeds(K))
    loss = output.loss_sum / output.weight_sum
    loss.backward()
    expected = release_loss(reference, batch, output.refined_map, how)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert 0 < int(output.num_masks) == int(output.valid.sum()) < 4 * K
    norm = torch.stack([p.grad.norm() for p in reference.parameters() if p.grad is not None]).norm()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if ours.requires_grad:
            assert (ours.grad - theirs.grad).norm() < 1e-5 * norm, name
    if changed and "model.head_output_bias" not in changed:
        plain = copy.deepcopy(reference)
        usual = release_loss(plain, batch, output.refined_map, DEFAULT)
        assert abs(usual.item() - loss.item()) > 1e-4


def test_weights_of_masks_are_those_of_their_names() -> None:
    """By hand: the sums that the loss is divided by."""
    batch, found = in_double(batch_of()), {}
    for weight in ("equal", "image", "area"):
        output = model_with(settings_with({"objective.mask_weight": weight}))(batch, seeds(K))
        found[weight] = float(output.weight_sum)
        counts = output.valid.sum(1)
    assert found["equal"] == float(counts.sum())
    assert found["image"] == pytest.approx(4)  # all four have a valid mask
    assert len(set(counts.tolist())) > 1
    assert 8 < found["area"] < 16  # four images of 4 cells, but for masks that one view lacks


@pytest.mark.parametrize("loss", ["detcon_b", "nt_xent"])
def test_contrastive_losses_weigh_images_alike_already(loss: str) -> None:
    with pytest.raises(ValueError, match=f"mask_weight: area needs loss: byol; {loss} samples masks_per_view"):
        settings_with({"objective.loss": loss, "objective.mask_weight": "area"})


def test_the_target_moves_between_the_masks_and_the_loss() -> None:
    model, batch = model_with(settings_with({})), in_double(batch_of())
    old, moved = copy.deepcopy(model), copy.deepcopy(model)
    update_target(moved.target, moved.online, target_ema=0.3)
    output = model(batch, seeds(K), target_ema=0.3)
    assert torch.equal(output.refined_map, old.refine(batch.images, batch.superpixels, seeds(K)))
    expected = release_loss(moved, batch, output.refined_map, DEFAULT)
    assert (output.loss_sum / output.weight_sum).item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(model.target.parameters(), moved.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def release_s_loop(steps: int, *, target_ema: float) -> tuple[list[float], list[float]]:
    """ξ that makes the masks and ξ that gives the targets, where θ is 0 at first and grows by 1 a step.

    R2OModel.forward: do_kmeans, online pass, _update_target_network(mm), target pass; then optimizer.step().
    """
    theta = xi = 0.0
    masks, targets = [], []
    for _ in range(steps):
        masks.append(xi)
        xi = target_ema * xi + (1 - target_ema) * theta
        targets.append(xi)
        theta += 1
    return masks, targets


@pytest.mark.parametrize(
    ("target_update", "masks", "targets"),
    [
        ("before_targets", *release_s_loop(4, target_ema=0.9)),
        ("after_step", [0, 0.1, 0.29, 0.561], [0, 0.1, 0.29, 0.561]),  # BYOL: optimiser, then target, with every step
    ],
)
def test_the_target_of_each_step_is_that_of_the_release_s_loop(
    target_update: str, masks: list[float], targets: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with({}, optim={"target_update": target_update})
    plan = plan_batches(settings, num_samples=16, num_ranks=1)
    training = build_training(settings, plan, WORLD, max_superpixels=16)
    model = unwrapped(training.model)
    theta, xi = (network["projector"][0].bias for network in (model.online, model.target))
    seen: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        theta.zero_(), xi.zero_()
    monkeypatch.setattr(method, "run_target_ema", lambda *_: 0.9)
    monkeypatch.setattr(training.optimizer, "step", lambda: theta.data.add_(1))
    refine = model.refine
    monkeypatch.setattr(model, "refine", lambda *inputs: seen[0].append(xi[0].item()) or refine(*inputs))
    model.target["backbone"].register_forward_pre_hook(lambda *_: seen[1].append(xi[0].item()))
    host = HostBatch.__new__(HostBatch, *([None] * len(HostBatch._fields)))._replace(skipped=())
    for step in range(4):
        train_step(training, [LocalBatch(host, batch_of())], step=step)
    assert seen[0] == pytest.approx(masks)
    assert seen[1][::2] == seen[1][1::2] == pytest.approx(targets)  # both views
    if target_update == "before_targets":
        assert targets == pytest.approx([0, 0.1, 0.29, 0.561])


def test_a_target_that_moves_within_the_step_has_one_pass_a_step() -> None:
    with pytest.raises(ValueError, match=r"before_targets needs run\.accumulation: 1"):
        settings_with({}, optim={"target_update": "before_targets"}, run={"accumulation": 2})


@pytest.mark.parametrize("form", ["deepmind", "release"])
def test_the_release_adapts_and_decays_the_gain_of_the_stem_and_no_other(form: str) -> None:
    """w ← w - lr·g where LARS does not adapt; by the release w ← w - lr·(g + λw)·η‖w‖/(‖g‖ + λ‖w‖) of the stem."""
    settings = settings_with({}, optim={"lars": form, "weight_decay": 0.1, "trust_coefficient": 0.02})
    model = build_model(settings, max_superpixels=16).double()
    optimizer = build_optimizer(model, settings)
    torch.manual_seed(0)
    gains = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 1}
    before = {n: p.detach().clone() for n, p in gains.items()}
    for p in model.parameters():
        p.grad = torch.randn_like(p) if p.requires_grad else None
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    optimizer.step()
    adapted = []
    for name, p in gains.items():
        w, g = before[name], p.grad
        by_release = w - 0.5 * (g + 0.1 * w) * 0.02 * w.norm() / (g.norm() + 0.1 * w.norm())
        if torch.allclose(p, by_release, rtol=1e-12) and w.norm() > 0:
            adapted.append(name)
        else:
            torch.testing.assert_close(p.detach(), w - 0.5 * g)
    assert adapted == (["online.backbone.bn1.weight"] if form == "release" else [])


@pytest.mark.parametrize(("probability", "share", "tolerance"), [(1.0, 1.0, 0.0), (0.5, 0.5, 0.125), (0.0, 0.0, 0.0)])
def test_the_release_flips_every_view(probability: float, share: float, tolerance: float) -> None:
    """And the paper half of them: five standard deviations over 400 views."""
    how = {"data": DataSettings(), "augment": AugmentSettings(flip_probability=probability)}
    drawn = [draw_geometry(np.random.default_rng(i), width=80, height=60, **how).flipped for i in range(200)]
    assert abs(np.mean(drawn) - share) <= tolerance
