"""Every constant and every sum of the estimate, against what torch counts."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.estimates.cost import (
    LARGEST_MAP,
    LIVE_MAPS,
    TRUNKS,
    checkpoint_bytes,
    cost_rows,
    count_parameters,
    device_memory,
    image_flops,
    run_flops,
    usual_masks,
)
from pipeline.foundation.settings import load_settings
from train.config.batches import BatchPlan, plan_batches
from train.config.pretrain import ModelSettings, PretrainSettings
from train.distributed.world import World
from train.engine.build import build_model, build_training
from train.engine.checkpoint import Checkpoints, checkpoints
from train.models import small_maps
from train.models.backbone import make_backbone
from train.r2o.model import R2O, Batch, Output

SMALL = {
    "epochs": 4,
    "global_batch_size": 8,
    "data": {"image_size": 96, "view_size": 96},
    "model": {"backbone": "resnet18", "head_hidden_size": 256, "projection_size": 64},
    "refine": {"clustering_group_size": 8},
    "curriculum": {"initial_num_clusters": 16, "hold_epochs": 1},
}
HEAVY = ("resnet50", "resnet101", "resnet152", "vit_b_16", "vit")  # a second or more each; the others show the same


def lighter_first(names: Iterable[str]) -> list[Any]:
    """Parameters of a test, of which the heavy ones are long."""
    return [pytest.param(name, marks=pytest.mark.long) if name in HEAVY else name for name in names]


VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "resnet50": {"model": {"backbone": "resnet50"}},
    "vit": {"model": {"backbone": "vit_s_16"}},
    "release": {"objective": {"rows": "all"}, "model": {"head_output_bias": True}},
    "cells": {"refine": {"regions": "cells"}},
    "grid": {"refine": {"clustering": "none", "regions": "grid"}},
    "nt_xent": {"objective": {"loss": "nt_xent"}},
    "bf16": {"run": {"precision": "bf16"}},
}


def settings_of(variant: str) -> PretrainSettings:
    changed = VARIANTS[variant]
    merged = {name: {**SMALL.get(name, {}), **values} for name, values in changed.items()}
    return PretrainSettings.model_validate({**SMALL, **merged})


def plan_of(settings: PretrainSettings, *, num_ranks: int = 1) -> BatchPlan:
    return plan_batches(settings, num_samples=settings.global_batch_size * 10, num_ranks=num_ranks)


@contextmanager
def kept_bytes(module: nn.Module) -> Iterator[list[int]]:
    """What the graph of the pass within keeps besides the module's own tensors, each storage once; known at its end."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}
    result: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield result
    result.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))
    kept.clear()  # the graph holds the hook, the hook what it kept, and that the graph


def test_every_backbone_has_its_row() -> None:
    assert set(TRUNKS) == set(get_args(ModelSettings.model_fields["backbone"].annotation))


@pytest.mark.parametrize("name", TRUNKS)
def test_constants_of_a_backbone(name: str) -> None:
    trunk = TRUNKS[name]
    with torch.device("meta"):
        backbone = make_backbone(name)
    assert trunk.parameters == sum(p.numel() for p in backbone.parameters())
    assert (trunk.c4_channels, trunk.c5_channels) == (backbone.c4_channels, backbone.c5_channels)
    image = torch.randn(1, 3, 224, 224, device="meta")
    for forward, macs in ((backbone.forward_c4, trunk.c4_macs), (backbone, trunk.c5_macs)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            forward(image)
        assert macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", lighter_first(TRUNKS))
def test_what_a_backbone_keeps_for_the_backward_pass(name: str, precision: str) -> None:
    backbone, of_batch = make_backbone(name).train(), []
    for size in (1, 2):  # the difference is free of what does not grow: copies of weights, batch statistics
        with (
            kept_bytes(backbone) as kept,
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            output = backbone(torch.randn(size, 3, 224, 224))
        of_batch += kept
        del output
    expected = TRUNKS[name].kept_bf16 if precision == "bf16" else TRUNKS[name].kept_fp32
    assert of_batch[1] - of_batch[0] == pytest.approx(expected, rel=0.05)


def passed(model: R2O, settings: PretrainSettings, *, count: int = 8) -> Output:
    """One forward pass over random views of halves of random images."""
    generator, size = torch.Generator().manual_seed(0), settings.data.image_size
    place = torch.arange(size) * 10 // size
    batch = Batch(
        images=torch.randn(count, 3, size, size, generator=generator),
        superpixels=(place[:, None] * 10 + place).int().expand(count, size, size),
        views=torch.randn(count, 2, 3, size, size, generator=generator),
        crop_box=torch.tensor([[0.0, 0.0, 0.8, 0.8], [0.2, 0.2, 1.0, 1.0]]).expand(count, 2, 4),
        flipped=torch.zeros(count, 2, dtype=torch.bool),
    )
    uniforms = torch.rand(1, settings.num_clusters(0), generator=generator)
    return model(batch, uniforms, torch.rand(count, 2, settings.objective.masks_per_view, generator=generator))


@pytest.mark.parametrize("variant", lighter_first(VARIANTS))
def test_a_whole_step(variant: str) -> None:
    """Parameters exactly; operations within a few percent, given the masks that there were."""
    settings = settings_of(variant)
    model = build_model(settings, max_superpixels=100).train()
    count = count_parameters(settings)
    assert count.online == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count.target == sum(p.numel() for p in model.target.parameters())
    with (
        sdpa_kernel(SDPBackend.MATH),  # torch 2.11 does not count the CPU's fused attention
        FlopCounterMode(display=False) as counter,
        torch.autocast("cpu", torch.bfloat16, enabled=settings.run.precision == "bf16"),
    ):
        output = passed(model, settings)
        output.loss_sum.backward()
    masks = len(output.predictions) / 8
    estimate = 8 * image_flops(settings, num_clusters=settings.num_clusters(0), masks=masks)
    assert estimate == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert usual_masks(settings, settings.num_clusters(0)) == pytest.approx(masks, rel=1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_a_step(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_maps, "MOST_CELLS", 0)  # as on a GPU; a CPU keeps the patches of the products, too
    settings = PretrainSettings.model_validate({**SMALL, "run": {"precision": precision}})
    model = build_model(settings, max_superpixels=100).train()
    with kept_bytes(model) as kept, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = passed(model, settings)
    word = 4 if precision == "fp32" else 2
    passing = 8 * LIVE_MAPS * LARGEST_MAP * (96 / 224) ** 2 * word
    copies = 2 * count_parameters(settings).online if precision == "bf16" else 0
    estimate = device_memory(settings, plan_of(settings))["activations"] - passing
    assert estimate == pytest.approx(kept[0] - copies, rel=0.07)
    assert output.loss_sum.requires_grad


ONE_GPU = Path(__file__).parents[3] / "configs" / "imagenet100_r50_1gpu.yaml"


def of_one_gpu(*changes: str) -> tuple[PretrainSettings, BatchPlan]:
    settings = load_settings(PretrainSettings, "pretrain", ONE_GPU, [f"pretrain.{one}" for one in changes])
    return settings, plan_batches(settings, num_samples=126_689, num_ranks=1)


def test_the_recipe_for_one_gpu_leaves_it_room_and_twice_the_pass_would_not() -> None:
    needs = [
        sum(device_memory(*of_one_gpu(f"run.local_batch_size={1024 // n}", f"run.accumulation={n}")).values())
        for n in (4, 8, 16)
    ]
    assert sum(device_memory(*of_one_gpu()).values()) == needs[1]
    assert needs[1] < 0.6 * 24e9 < 24e9 < needs[0]
    assert needs[2] < 0.6 * 12e9


@pytest.mark.long
def test_what_a_pass_of_the_recipe_for_one_gpu_keeps() -> None:
    """At a quarter of its local batch: one clustering group of 32 photographs' size, by bytes that autograd keeps."""
    settings, plan = of_one_gpu("global_batch_size=32", "run.local_batch_size=32", "run.accumulation=1")
    model = build_model(settings, max_superpixels=100).train().to(memory_format=torch.channels_last)
    with kept_bytes(model) as kept, torch.autocast("cpu", torch.bfloat16):
        output = passed(model, settings, count=32)
    passing = 32 * LIVE_MAPS * LARGEST_MAP * 2
    copies = 2 * count_parameters(settings).online
    assert device_memory(settings, plan)["activations"] - passing == pytest.approx(kept[0] - copies, rel=0.03)
    of_whole = device_memory(*of_one_gpu())["activations"]
    assert of_whole == pytest.approx(4 * device_memory(settings, plan)["activations"])
    print(f"kept by 32 images: {(kept[0] - copies) / 1e9:.4f} GB, {len(output.predictions) / 64:.1f} masks an image")


def test_gradients_lie_in_the_buckets_and_half_precision_copies_the_weights() -> None:
    settings = settings_of("paper")
    count = count_parameters(settings)
    doubled = settings.model_copy(update={"global_batch_size": 16})
    alone, shared = (device_memory(doubled, plan_of(doubled, num_ranks=ranks)) for ranks in (1, 2))
    assert alone["weights"] == 4 * (3 * count.online + count.target)
    assert shared["weights"] == alone["weights"]
    # both views of its 8 images pass the target together, in maps of 64 × 48 × 48 float32
    assert shared["activations"] == pytest.approx(alone["activations"] / 2 + 8 * 3 * 64 * 48**2 * 4)
    halved = device_memory(settings_of("bf16"), plan_of(settings))
    assert halved["weights"] - alone["weights"] == 2 * count.online
    assert alone["batches"] == 2 * 16 * 3 * 3 * 96**2 * 5


@pytest.mark.parametrize("variant", ["paper", "nt_xent"])
def test_a_checkpoint_has_the_size_that_was_said(variant: str, tmp_path: Path) -> None:
    settings = settings_of(variant)
    training = build_training(settings, plan_of(settings), World(0, 1, torch.device("cpu")), max_superpixels=100)
    for parameter in training.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    training.optimizer.step()
    saved = Checkpoints(tmp_path, fingerprint="f", keep=1)
    saved.save(training, step=1)
    saved.wait()
    assert checkpoint_bytes(settings) == pytest.approx(checkpoints(tmp_path)[0].stat().st_size, rel=0.01)


def test_the_run_sums_its_epochs() -> None:
    settings = settings_of("paper")
    by_epoch = [image_flops(settings, num_clusters=k, masks=k**0.5) for k in map(settings.num_clusters, range(4))]
    assert run_flops(settings, plan_of(settings)) == pytest.approx(10 * 8 * sum(by_epoch))
    assert by_epoch[0] > by_epoch[3]


def test_the_papers_run() -> None:
    settings = PretrainSettings.model_validate({"run": {"precision": "bf16"}})
    rows = cost_rows(settings, plan_batches(settings, num_samples=1_281_167, num_ranks=128))
    assert rows["parameters"].startswith("35.1 M = backbone 23.5 M + projector 9.45 M + predictor 2.11 M; target 33 M")
    # by hand: 4096 images × (2 views × 4 × 4.09 + 3.28 + a few % of heads and K-means) GMAC
    assert 0.283e3 < float(rows["compute"].split()[0]) < 0.31e3
    # 4096 × 93,600 images of 73.8 GFLOP; ResNet-50's 2 × 3 × 4.09 GFLOP at 905, 1301, 1582 and 2616 images/s
    hours = [4096 * 93_600 * 73.8e9 / (128 * rate * 2 * 3 * 4.09e9) / 3600 for rate in (905, 1301, 1582, 2616)]
    times = re.findall(r"([\d.]+) (h|min) on 128 × (RTX 3090|RTX 4090|A100|H100)", rows["time"])
    assert [gpu for *_, gpu in times] == ["RTX 3090", "RTX 4090", "A100", "H100"]
    assert [float(n) / {"h": 1, "min": 60}[unit] for n, unit, _ in times] == pytest.approx(hours, rel=0.01)
    assert "V100" not in rows["time"]  # multiplies no bf16
    # 24.5 GFLOP × rate, of 71, 165, 312 and 989 TFLOP/s
    assert "estimated, not measured: at 31, 19, 12, 6 % of their peak" in rows["time"]
    assert "github.com/lambdal/deeplearning-benchmark" in rows["time"]
    assert "2 and 3 milestones are kept: 2.47 GB of disk" in rows["checkpoint"]  # 2 + 3 + 1 of 0.412 GB


@pytest.mark.parametrize(
    ("backbone", "precision", "gpus"),
    [
        ("resnet50", "fp16", ["V100", "RTX 3090", "RTX 4090", "A100", "H100"]),
        ("resnet50", "tf32", ["RTX 3090", "RTX 4090", "A100", "H100"]),
        ("resnet50", "fp32", ["V100"]),
        ("resnet101", "bf16", []),
        ("vit_b_16", "bf16", []),  # large products reach a larger share
    ],
)
def test_only_what_somebody_has_published_gets_a_time(backbone: str, precision: str, gpus: list[str]) -> None:
    settings = PretrainSettings.model_validate({"run": {"precision": precision}, "model": {"backbone": backbone}})
    said = cost_rows(settings, plan_batches(settings, num_samples=1_281_167, num_ranks=128))["time"]
    assert re.findall(r"on 128 × ([A-Z]+ ?\d+)", said) == gpus
    if not gpus:
        assert said.startswith(f"not estimated: no published rate of {backbone} in {precision} is known here")


def test_a_run_under_way_tells_the_time_that_is_left(tmp_path: Path) -> None:
    settings = settings_of("paper")
    plan = plan_of(settings)
    assert cost_rows(settings, plan, tmp_path)["time"] == cost_rows(settings, plan)["time"]
    lines = [{"step": step, "loss": 1.0, "images_per_second": 2.0 if step else 1e6} for step in range(10)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    for torn in ("", '{"step": 1', "1", '{"step": 12}\n'):
        (tmp_path / "log.jsonl").write_text(text + torn)
        assert (
            cost_rows(settings, plan, tmp_path)["time"] == "2 min left after step 10 of 40, at 2 images/s as measured"
        )
