"""One step: what it updates, in which order, and that it stops before a bad update."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.artifacts.manifest import Manifest
from tests.train.engine.test_lars import reference_step
from train.config.batches import plan_batches
from train.config.pretrain import OptimSettings, PretrainSettings
from train.data.device import LocalBatch, to_device
from train.data.loader import HostBatch, host_batches
from train.data.shards.open import open_shards
from train.distributed.world import World
from train.engine.build import Training, build_model, build_optimizer, build_training, compile_backbones, unwrapped
from train.engine.lars import LARS
from train.engine.step import Culprit, NotFiniteError, StepFigures, train_step
from train.models.backbone import build_backbone
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O

pytestmark = pytest.mark.usefixtures("shallow")

SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 2,
        "global_batch_size": 8,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
        "augment": {"blur_kernel_size": 5},
        "model": {"backbone": "resnet18", "head_hidden_size": 32, "projection_size": 8},
        "refine": {"clustering_group_size": 8},
        "curriculum": {"initial_num_clusters": 6, "hold_epochs": 0},
        "optim": {"base_lr": 3.2, "warmup_epochs": 0, "base_target_ema": 0.9},
    }
)
WORLD = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def host(shards: Path) -> HostBatch:
    reader = open_shards(str(shards), Manifest.read(shards), SETTINGS.data)
    return next(iter(host_batches(reader, SETTINGS, range(1), rank=0, num_ranks=1)))


def step_on(model: R2O, optimizer: LARS, host: HostBatch) -> StepFigures:
    plan = plan_batches(SETTINGS, num_samples=70, num_ranks=1)
    local_batch = LocalBatch(host, to_device(host, SETTINGS, WORLD.device))
    return train_step(Training(model, optimizer, SETTINGS, plan, WORLD), [local_batch], step=0).figures


def fresh() -> tuple[R2O, LARS]:
    model = build_model(SETTINGS, max_superpixels=25).train()
    return model, build_optimizer(model, SETTINGS)


def test_a_step_moves_the_online_network_first_and_then_the_target_towards_it(host: HostBatch) -> None:
    model, optimizer = fresh()
    before = copy.deepcopy(model)
    figures = step_on(model, optimizer, host)
    assert figures.lr == pytest.approx(3.2 * 8 / 256)  # no warm-up: the peak
    assert figures.num_clusters == 6
    assert 0 < figures.loss < 8
    for old, online, target in zip(
        before.target.parameters(), model.online.parameters(), model.target.parameters(), strict=True
    ):
        torch.testing.assert_close(target, 0.9 * old + 0.1 * online, msg="τ = 0.9 of the updated network")
    w_old, w_new = before.online["backbone"].conv1.weight, model.online["backbone"].conv1.weight
    # LARS: a first step moves a tensor by lr · η · ‖w‖, whatever its gradient is
    moved = ((w_new - w_old).norm() / w_old.norm()).item()
    assert moved == pytest.approx(figures.lr * 1e-3, rel=1e-3)


def test_the_same_step_gives_the_same_bits(host: HostBatch) -> None:
    results = []
    for _ in range(2):
        model, optimizer = fresh()
        results.append((step_on(model, optimizer, host), model.state_dict()))
    assert results[0][0] == results[1][0]
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name


def test_a_loss_that_is_not_finite_stops_before_the_update(host: HostBatch) -> None:
    model, optimizer = fresh()
    with torch.no_grad():
        model.predictor[3].weight[0, 0] = torch.nan
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(NotFiniteError, match=r"step 0: loss nan, gradient norm nan") as caught:
        step_on(model, optimizer, host)
    assert caught.value.culprits == (Culprit(0, "prediction", host.sample_id.tolist()),)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], equal_nan=True, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("form", ["deepmind", "release"])
def test_the_optimizer_takes_every_number_of_its_settings(form: str) -> None:
    """Two steps against NumPy's; the decay is as large as the gradient, so that it decides the direction."""
    optim = OptimSettings(lars=form, momentum=0.7, weight_decay=0.5, trust_coefficient=0.02)
    model = build_model(SETTINGS, max_superpixels=25)
    optimizer = build_optimizer(model, SETTINGS.model_copy(update={"optim": optim}))
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    head = model.predictor
    chosen = [model.online["backbone"].conv1.weight, head[0].weight, head[1].weight, head[1].bias]
    expected = [(p.detach().double().numpy(), np.zeros(p.shape)) for p in chosen]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        for i, p in enumerate(chosen):
            p.grad = 0.5 * p.detach().square().mean().sqrt() * torch.randn(p.shape, generator=generator)
            w, m = expected[i]
            expected[i] = reference_step(
                w, p.grad.double().numpy(), m, lr=0.3, momentum=0.7, decay=0.5, eta=0.02, release=form == "release"
            )
        optimizer.step()
    for p, (w, _) in zip(chosen, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-5, atol=1e-7)


def test_tokens_of_a_vit_are_neither_adapted_nor_decayed() -> None:
    settings = SETTINGS.model_copy(
        update={"model": SETTINGS.model.model_copy(update={"backbone": "vit_s_16"}), "optim": OptimSettings()}
    )
    model = build_model(settings, max_superpixels=25)
    optimizer = build_optimizer(model, settings)
    backbone = model.online["backbone"]
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.5
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    tokens = [backbone.class_token, backbone.encoder.pos_embedding]
    assert {id(p) for p in optimizer.param_groups[1]["params"]} == {id(p) for p in tokens}
    before = [p.detach().clone() for p in tokens]
    optimizer.step()
    for old, new in zip(before, tokens, strict=True):
        torch.testing.assert_close(new.detach(), old - 0.5)


def other_step(shards: Path, settings: PretrainSettings, step: int = 0) -> tuple[Training, StepFigures]:
    """A step of a run with these settings, from its own first batch or batches."""
    manifest = Manifest.read(shards)
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=1)
    training = build_training(settings, plan, WORLD, max_superpixels=manifest.max_superpixels)
    return training, train_step(training, local_batches_of(shards, settings, step), step=step).figures


def local_batches_of(shards: Path, settings: PretrainSettings, step: int = 0) -> list[LocalBatch]:
    manifest = Manifest.read(shards)
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=1)
    batches = host_batches(
        open_shards(str(shards), manifest, settings.data), settings, range(step, step + 1),
        rank=0, num_ranks=1, local_batch_size=plan.local_batch_size,
    )  # fmt: skip
    return [LocalBatch(host, to_device(host, settings, WORLD.device)) for host in batches]


def with_run(mask_weight: str = "equal", **run: object) -> PretrainSettings:
    changed = {"global_batch_size": 16, "run": run, "objective": {"mask_weight": mask_weight}}
    return PretrainSettings.model_validate({**SETTINGS.model_dump(), **changed})


@pytest.mark.parametrize("mask_weight", ["equal", "image", "area"])
def test_accumulated_passes_give_the_gradient_of_the_loss_over_all_masks(shards: Path, mask_weight: str) -> None:
    settings = with_run(mask_weight, accumulation=2)
    parts = local_batches_of(shards, settings)
    assert [len(part.host.sample_id) for part in parts] == [8, 8]
    whole = local_batches_of(shards, with_run())[0].host.sample_id
    assert torch.equal(torch.cat([part.host.sample_id for part in parts]), whole)
    training, figures = other_step(shards, settings)
    reference = build_model(settings, max_superpixels=25).train()
    outputs = [
        reference(part.batch, seeding_uniforms(6, seed=0, step=0, first_group=number, num_groups=1))
        for number, part in enumerate(parts)
    ]
    weights = [float(o.weight_sum) for o in outputs]
    assert len({*weights, *(float(o.num_masks) for o in outputs)}) > 2 or mask_weight == "equal"
    loss = sum(o.loss_sum for o in outputs) / sum(weights)
    loss.backward()
    assert figures.loss == pytest.approx(loss.item(), rel=1e-5)
    assert figures.valid_fraction == pytest.approx(sum(int(o.num_masks) for o in outputs) / (16 * 6))
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.parameters() if p.grad is not None]).item()
    assert figures.grad_norm == pytest.approx(norm, rel=1e-4)
    for (name, ours), theirs in zip(training.model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6 * norm, name


@pytest.mark.slow
def test_fp16_scales_the_loss_and_skips_what_overflows(shards: Path) -> None:
    small = {
        **SETTINGS.model_dump(),
        "data": {"image_size": 32, "view_size": 32, "num_workers": 0},
    }  # fp16 is slow here
    settings = PretrainSettings.model_validate({**small, "run": {"precision": "fp16"}})
    plain = other_step(shards, PretrainSettings.model_validate(small))[1]
    plan, local_batches = plan_batches(settings, num_samples=70, num_ranks=1), local_batches_of(shards, settings)
    training = build_training(settings, plan, WORLD, max_superpixels=25)
    assert training.scaler is not None
    training.scaler.scale(torch.ones(()))
    training.scaler.update(2.0**18)
    before = {name: p.detach().clone() for name, p in training.model.named_parameters()}
    overflowed = 0
    while (figures := train_step(training, local_batches, step=0).figures).overflowed:
        overflowed += 1
        assert training.scaler.get_scale() == 2.0 ** (18 - overflowed)
        assert all(torch.equal(p, before[name]) for name, p in training.model.named_parameters())
    assert overflowed >= 1
    assert figures.loss == pytest.approx(plain.loss, rel=0.02)
    assert figures.grad_norm == pytest.approx(plain.grad_norm, rel=0.1)  # of gradients that are not scaled any more
    assert not all(torch.equal(p, before[name]) for name, p in training.model.named_parameters())


def test_the_gradient_that_is_not_finite_is_named(host: HostBatch) -> None:
    model, optimizer = fresh()
    poisoned = model.online["projector"][0].weight
    poisoned.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NotFiniteError, match="gradient norm nan") as caught:
        step_on(model, optimizer, host)
    (culprit,) = caught.value.culprits
    assert culprit == Culprit(0, "gradient of online.projector.0.weight", host.sample_id.tolist())
    assert np.isfinite(caught.value.loss)


def test_the_global_generators_are_a_function_of_the_step(host: HostBatch) -> None:
    """So dropout, which a backbone may have, is the same after a resume."""
    results = []
    for disturbance in (1, 2):
        torch.manual_seed(disturbance)
        model, optimizer = fresh()
        model.online["backbone"].layer1.add_module("dropout", torch.nn.Dropout(0.5))
        results.append(step_on(model, optimizer, host).loss)
    assert results[0] == results[1]
    assert results[0] != step_on(*fresh(), host).loss


@pytest.mark.processes
@pytest.mark.slow
def test_a_compiled_step_gives_the_same_numbers(shards: Path) -> None:
    settings = with_run()
    plan = plan_batches(settings, num_samples=70, num_ranks=1)
    training = build_training(settings, plan, WORLD, max_superpixels=25)
    names = [name for name, _ in training.model.named_parameters()]
    compile_backbones(unwrapped(training.model))
    assert [name for name, _ in training.model.named_parameters()] == names
    figures = train_step(training, local_batches_of(shards, settings), step=0).figures
    plain = other_step(shards, settings)[1]
    assert figures.loss == pytest.approx(plain.loss, rel=1e-4)
    assert figures.grad_norm == pytest.approx(plain.grad_norm, rel=1e-3)


def test_given_weights_are_those_of_both_networks_before_the_first_step() -> None:
    given = build_backbone("resnet18", seed=99).state_dict()
    plain, begun = (build_model(SETTINGS, max_superpixels=25, init=init).state_dict() for init in (None, given))
    for key, value in given.items():
        assert torch.equal(begun[f"online.backbone.{key}"], value)
        assert torch.equal(begun[f"target.backbone.{key}"], value)
    heads = [key for key in plain if ".backbone." not in key]
    assert heads
    assert all(torch.equal(begun[key], plain[key]) for key in heads)


def test_what_given_weights_lack_keeps_its_seeded_ones() -> None:
    settings = SETTINGS.model_copy(update={"model": SETTINGS.model.model_copy(update={"backbone": "vit_s_16"})})
    given = {"class_token": torch.full((1, 1, 384), 0.5)}
    plain, begun = (build_model(settings, max_superpixels=25, init=init).state_dict() for init in (None, given))
    changed = {key for key, value in begun.items() if not torch.equal(value, plain[key])}
    assert changed == {"online.backbone.class_token", "target.backbone.class_token"}
    assert torch.equal(begun["target.backbone.class_token"], given["class_token"])
