"""One step: what it updates, in which order, and that it stops before a bad update."""

import copy
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.manifest import Manifest
from train.build import Training, build_model, build_optimizer
from train.config import OptimSettings, PretrainSettings, plan_batches
from train.data.device import Arrived, to_device
from train.data.loader import HostBatch, host_batches
from train.data.source import open_shards
from train.distributed import World
from train.optim import LARS
from train.r2o.model import R2O
from train.step import Culprit, NotFiniteError, StepFigures, train_step

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
    arrived = Arrived(host, to_device(host, SETTINGS, WORLD.device))
    return train_step(Training(model, optimizer, SETTINGS, plan, WORLD), [arrived], step=0)


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
