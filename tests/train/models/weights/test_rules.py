"""Every row of the table of rules reads random weights under its project's names, all of them and no others."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.foundation.errors import InputError
from tests.train.models.weights.conftest import (
    Weights,
    caffe2,
    detectron2,
    haiku,
    mm_vit,
    prefixed,
    sequential,
    timm_vit,
    weights_of,
    without_counters,
)
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from train.models.backbone_file import save_backbone
from train.models.weights.form import Form
from train.models.weights.load import load_backbone
from train.models.weights.names import NAMINGS
from train.models.weights.rules import FORMATS_OF_WEIGHTS, RULES

X = torch.zeros(2, 2)
FC = {"fc.weight": X, "fc.bias": X}


class _ByolExperimentState(NamedTuple):
    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


class Case(NamedTuple):
    """`content` of a file with online weights `w` and those of the network that follows, `t`."""

    name: str
    content: Callable[[Weights, Weights], Any]
    suffix: str = ".pth"
    auto: bool = True
    has_target: bool = False
    left_out: frozenset[str] = frozenset()
    taken: str = "online"


def byol_pickle(w: Weights, t: Weights) -> dict[str, Any]:
    (wp, ws), (tp, ts) = haiku(w), haiku(t)
    momentum = haiku(weights_of("resnet50", seed=9))[0]
    return {"experiment_state": _ByolExperimentState(wp, tp, ws, ts, {"momentum": momentum}), "step": 3}


def detcon_npy(w: Weights, t: Weights) -> np.ndarray:
    params, state = haiku(w)
    return np.array({"params": params, "state": state}, dtype=object)


def encoders(prefix: str, w: Weights, t: Weights, more: dict[str, Any]) -> dict[str, Any]:
    """A MoCo of a kind."""
    return prefixed(f"{prefix}encoder_q.", {**w, **more}) | prefixed(f"{prefix}encoder_k.", {**t, **more})


CASES: dict[str, list[Case]] = {
    "r2o_checkpoint": [
        Case("resnet18", lambda w, t: {
            "format_version": 1, "fingerprint": "f" * 64, "step": 3, "seed": 0, "scaler": None, "optimizer": {},
            "model": prefixed("online.backbone.", w) | prefixed("target.backbone.", t) | {"online.projector.0.bias": X},
        }, has_target=True, left_out=frozenset({"online", "model/target.backbone", "seed", "fingerprint", "scaler"})),
    ],
    "r2o_release": [
        Case("resnet50", lambda w, t: {"epoch": 1, "amp": {}, "model": prefixed(
            "module.online_network.encoder.", sequential(w)) | prefixed("module.target_network.encoder.", sequential(t))
            | {"module.online_network.projetion.l1.weight": X}}, has_target=True),
    ],
    "mocov3": [
        Case("vit_s_16", lambda w, t: {"arch": "vit_small", "state_dict": prefixed(
            "module.base_encoder.", timm_vit(w) | {"head.0.weight": X}) | prefixed("module.momentum_encoder.",
            timm_vit(t)) | {"module.predictor.0.weight": X}}, has_target=True),
        Case("resnet50", lambda w, t: {"state_dict": prefixed("module.base_encoder.", w | {"fc.0.weight": X})
                                       | prefixed("module.momentum_encoder.", t)}, has_target=True),
        Case("vit_s_16", lambda w, t: {"state_dict": prefixed("module.", timm_vit(w) | {"head.bias": X})}, auto=False),
    ],
    "dino": [
        Case("vit_s_16", lambda w, t: {
            "student": prefixed("module.backbone.", timm_vit(w)) | {"module.head.mlp.0.weight": X},
            "teacher": prefixed("backbone.", timm_vit(t)) | {"head.mlp.0.weight": X}, "epoch": 1,
        }, has_target=True, taken="target"),
        Case("resnet50", lambda w, t: {"student": prefixed("module.backbone.", w)}),
    ],
    "densecl": [
        Case("resnet50", lambda w, t: {"state_dict": prefixed("backbone.", w) | prefixed("encoder_q.0.", w) | prefixed(
            "encoder_k.0.", t) | {"encoder_q.1.mlp.0.weight": X, "queue": X, "queue2": X, "queue2_ptr": X}},
            has_target=True),
    ],
    "resim": [
        Case("resnet50", lambda w, t: {"state_dict": encoders("module.", w, t, {
            "fc.0.weight": X, "fpn_lateral4.weight": X, "fpn_output5.0.bias": X})}, has_target=True),
    ],
    "slotcon": [
        Case("resnet50", lambda w, t: {"model": encoders("module.", w, t, {}) | {
            "module.grouping_q.slot_embed.weight": X, "module.projector_k.mlp.0.weight": X}}, has_target=True,
            taken="target"),
    ],
    "pixpro": [
        Case("resnet50", lambda w, t: {"model": prefixed("module.encoder.", w) | prefixed("module.encoder_k.", t) | {
            "module.projector.linear1.weight": X, "module.projector_k.linear1.weight": X}}, has_target=True),
    ],
    "lewel": [
        Case("resnet50", lambda w, t: {"state_dict": prefixed("module.online_net.backbone.", w) | prefixed(
            "module.target_net.backbone.", t) | {"module.online_net.neck.proj_obj.mlp.0.weight": X}}, has_target=True),
    ],
    "moco": [
        Case("resnet50", lambda w, t: {"arch": "resnet50", "state_dict": encoders(
            "module.", w, t, {"fc.0.weight": X, "fc.2.bias": X}) | {"module.queue": X}}, has_target=True,
            left_out=frozenset({"arch", "fc", "queue", "state_dict/module.encoder_k"})),
        Case("resnet18", lambda w, t: encoders("_orig_mod.module.", w, t, FC), has_target=True),
    ],
    "swav": [
        Case("resnet50", lambda w, t: prefixed("module.", w | {
            "projection_head.0.weight": X, "prototypes.prototypes0.weight": X}),
            left_out=frozenset({"projection_head", "prototypes"})),
    ],
    "byol": [
        Case("resnet50", lambda w, t: {"state_dict": prefixed("backbone.", sequential(w)) | prefixed(
            "backbone_momentum.", sequential(t)) | {"prediction_head.layers.0.weight": X}}, has_target=True),
        Case("resnet18", lambda w, t: {"state_dict": prefixed("backbone.", w) | prefixed("momentum_backbone.", t) | {
            "predictor.0.weight": X, "classifier.weight": X}, "hyper_parameters": {}}, has_target=True),
        Case("resnet50", lambda w, t: prefixed("online_encoder.net.", w | FC) | prefixed(
            "target_encoder.net.", t | FC) | {"online_predictor.net.0.weight": X}, has_target=True),
    ],
    "simclr": [
        Case("resnet18", lambda w, t: {"arch": "resnet18", "state_dict": prefixed(
            "backbone.", w | {"fc.0.weight": X, "fc.2.bias": X})}),
    ],
    "byol_deepmind": [
        Case("resnet50", byol_pickle, suffix=".pkl", has_target=True),
        Case("resnet50", lambda w, t: without_counters(w) | FC, auto=False),
    ],
    "detcon": [Case("resnet50", detcon_npy, suffix=".npy")],
    "mae": [
        Case("vit_b_16", lambda w, t: {"model": timm_vit(w) | {
            "mask_token": X, "decoder_pos_embed": X, "decoder_blocks.0.norm1.weight": X}, "epoch": 1},
            left_out=frozenset({"mask_token", "decoder_pos_embed", "decoder_blocks", "epoch"})),
    ],
    "detectron2_msra": [
        Case("resnet50", lambda w, t: caffe2(w) | {"fc1000_w": np.ones((2, 2)), "conv1_w_momentum": np.ones(1)},
             suffix=".pkl"),
        Case("resnet50", lambda w, t: {"blobs": caffe2(w)}, suffix=".pkl"),
    ],
    "detectron2": [
        Case("resnet50", lambda w, t: {"model": {k: v.numpy() for k, v in detectron2(w).items()} | {
            "stem.fc.0.weight": X.numpy()}, "__author__": "MOCO", "matching_heuristics": True}, suffix=".pkl"),
        Case("resnet18", lambda w, t: {"model": prefixed("backbone.bottom_up.", detectron2(without_counters(w))) | {
            "roi_heads.box_head.fc1.weight": X}, "iteration": 1}),
    ],
    "timm_ema": [
        Case("resnet18", lambda w, t: {"arch": "resnet18", "state_dict": t | FC, "state_dict_ema": w | FC}),
        Case("vit_b_16", lambda w, t: {"model": timm_vit(t), "model_ema": timm_vit(w) | {"head.bias": X}}),
    ],
    "vissl": [
        Case("resnet50", lambda w, t: {"classy_state_dict": {"base_model": {"model": {
            "trunk": prefixed("_feature_blocks.", w), "heads": {"0.clf.0.weight": X}}}}, "loss": 1.0},
            suffix=".torch"),
    ],
    "mmengine": [
        Case("resnet50", lambda w, t: {"meta": {"epoch": 1}, "state_dict": prefixed("backbone.", w) | prefixed(
            "encoder_k.module.0.", t) | {"head.fc.weight": X, "neck.mlp.0.weight": X}}, has_target=True),
        Case("vit_b_16", lambda w, t: {"meta": {}, "state_dict": prefixed("backbone.", mm_vit(w))}),
    ],
    "lightning": [
        Case("resnet18", lambda w, t: {"state_dict": prefixed("net._orig_mod.", w) | {"head.weight": X},
                                       "hyper_parameters": {"lr": 1.0}}, suffix=".ckpt"),
    ],
    "torchvision": [
        Case("resnet50", lambda w, t: w | FC, left_out=frozenset({"fc"})),
        Case("resnet34", lambda w, t: {"state_dict": prefixed("module.", without_counters(w))}),
        Case("vit_b_16", lambda w, t: {k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v
                                       for k, v in w.items()} | {"heads.head.bias": X}),
    ],
    "timm": [
        Case("vit_s_16", lambda w, t: timm_vit(w) | {"head.weight": X, "head.bias": X}, left_out=frozenset({"head"})),
        Case("vit_l_16", lambda w, t: {"model": timm_vit(w)}),
        Case("vit_s_8", lambda w, t: timm_vit(w)),
        Case("resnet18", lambda w, t: w | FC, auto=False),
    ],
    "sequential": [Case("resnet50", lambda w, t: prefixed("backbone.", sequential(w)))],
    "detco": [Case("resnet50", lambda w, t: {"state_dict": w}, auto=False)],
    "timm_inception": [Case("vit_s_16", lambda w, t: timm_vit(w), auto=False)],
}  # fmt: skip
ALL = [pytest.param(format, case, id=f"{format}-{case.name}") for format, cases in CASES.items() for case in cases]


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".npy":
        np.save(path, content, allow_pickle=True)
    elif path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    return path


def expected_of(weights: Weights, format: str) -> Weights:
    """What a file of the format tells of these weights; the rest is fixed."""
    no_counters = {key: torch.tensor(0) if key.endswith("tracked") else value for key, value in weights.items()}
    if format == "detectron2_msra":
        ones = {k: torch.full_like(v, 1 - 1e-5) for k, v in weights.items() if k.endswith("running_var")}
        return no_counters | {k: torch.zeros_like(v) for k, v in weights.items() if k.endswith("running_mean")} | ones
    return no_counters


@pytest.mark.long
@pytest.mark.parametrize(("format", "case"), ALL)
def test_a_row_loads_all_of_its_files_backbone(format: str, case: Case, tmp_path: Path) -> None:
    online, target = weights_of(case.name), weights_of(case.name, seed=1)
    path = write(tmp_path / f"w{case.suffix}", case.content(online, target))
    taken = online if case.taken == "online" else target
    for asked in ("auto", format) if case.auto else (format,):
        loaded = load_backbone(path, format=asked)
        assert (loaded.name, loaded.format, loaded.loaded) == (case.name, format, 1.0)
        assert loaded.weights.keys() == taken.keys()
        wanted = expected_of(taken, format)
        for key, value in loaded.weights.items():
            assert value.dtype == taken[key].dtype
            assert torch.equal(value, taken[key]) or torch.equal(value, wanted[key]), key
        assert not case.left_out or loaded.left_out.keys() >= case.left_out
    if case.has_target:
        followed = load_backbone(path, part="target")
        assert torch.equal(followed.weights[min(target)], expected_of(target, format)[min(target)])
    else:
        with pytest.raises(InputError, match="no target network"):
            load_backbone(path, format=format, part="target")


def test_every_row_has_a_case_and_every_naming_a_row() -> None:
    assert {*CASES, "r2o"} == set(FORMATS_OF_WEIGHTS)
    assert len(FORMATS_OF_WEIGHTS) == len(set(FORMATS_OF_WEIGHTS))
    assert {naming.name for rule in RULES for naming in rule.namings} == {naming.name for naming in NAMINGS}
    assert all("/" in rule.source for rule in RULES)


def test_every_row_is_in_the_page_on_weights() -> None:
    page = (Path(__file__).parents[4] / "docs/weights.md").read_text()
    table = page.partition("## Formats")[2].partition("## Pixels")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(FORMATS_OF_WEIGHTS)


def test_our_own_file_and_a_runs_folder(tmp_path: Path) -> None:
    weights = weights_of("resnet18")
    model = Form(name="resnet18").filled(weights)
    save_backbone(tmp_path / "backbone.pt", model, name="resnet18", fingerprint="abc", mean=(0.1, 0.2, 0.3))
    for place in (tmp_path, tmp_path / "backbone.pt", str(tmp_path)):
        loaded = load_backbone(place)
        assert (loaded.format, loaded.fingerprint, loaded.mean) == ("r2o", "abc", (0.1, 0.2, 0.3))
        assert all(torch.equal(value, weights[key]) for key, value in loaded.weights.items())
    with pytest.raises(InputError, match=r"a backbone\.pt of r2o, not moco"):
        load_backbone(tmp_path, format="moco")
    with pytest.raises(InputError, match="is a whole resnet18, not resnet50"):
        load_backbone(tmp_path, backbone="resnet50")
    with pytest.raises(InputError, match="online network alone"):
        load_backbone(tmp_path, part="target")


def test_a_checkpoint_tells_its_run(tmp_path: Path) -> None:
    path = write(tmp_path / "step-00000003.pt", CASES["r2o_checkpoint"][0].content(weights_of("resnet18"), {}))
    assert load_backbone(path).fingerprint == "f" * 64


@pytest.mark.parametrize(
    ("format", "mean", "std"),
    [
        ("torchvision", IMAGENET_MEAN, IMAGENET_STD),
        ("timm_inception", (0.5,) * 3, (0.5,) * 3),
        ("detectron2_msra", (123.675 / 255, 116.28 / 255, 103.53 / 255), (1 / 255,) * 3),
    ],
)
def test_pixels_are_normalised_as_the_project_does(format: str, mean: Any, std: Any, tmp_path: Path) -> None:
    case = CASES[format][0]
    path = write(tmp_path / f"w{case.suffix}", case.content(weights_of(case.name), {}))
    loaded = load_backbone(path, format=format)
    assert loaded.mean == pytest.approx(mean)
    assert loaded.std == pytest.approx(std)
