"""The backbone file: round trip, strictness, and that nothing in it is run."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from pipeline.foundation.errors import InputError
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from train.models.backbone_file import load_run_backbone, read_backbone, save_backbone
from train.models.torch_file import DamagedError
from train.models.weights.init import load_init

SEED = 20261127


def saved(path: Path, **changes: Any) -> Path:
    save_backbone(path, build_backbone("resnet18", seed=1), name="resnet18", fingerprint="f")
    if changes:
        torch.save({**torch.load(path, weights_only=True), **changes}, path)
    return path


def test_round_trip_equals_and_bytes_repeat(tmp_path: Path) -> None:
    model = build_backbone("resnet18", seed=1).to(memory_format=torch.channels_last)
    loaded = read_backbone(saved(tmp_path / "a.pt"))
    for key, value in loaded.build(dilate_c5=True).state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert (loaded.name, loaded.fingerprint) == ("resnet18", "f")
    assert (loaded.mean, loaded.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (tmp_path / "a.pt").read_bytes() == saved(tmp_path / "b.pt").read_bytes()


def test_torchvision_takes_the_weights_and_computes_the_same_c5(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18()
    loaded = read_backbone(saved(tmp_path / "a.pt"))
    missing, unexpected = theirs.load_state_dict(loaded.state_dict, strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pooled = loaded.build().eval()(images).c5.mean((2, 3))
    torch.testing.assert_close(theirs.eval()(images), pooled)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a backbone that r2o wrote"),
        ({"format_version": 2}, "format version 2"),
        ({"backbone": "resnet17"}, "unknown backbone 'resnet17'"),
        ({"backbone": "resnet34"}, "weights of resnet34 are missing"),
        ({"std": [0.0, 1.0, 1.0]}, "mean and std"),
        ({"note": "x"}, "its members are"),
        ({"state_dict": [1]}, "state_dict is no dict of weights by name"),
        ({"state_dict": {0: torch.ones(1)}}, "state_dict is no dict of weights by name"),
        ({"state_dict": {"encoder.pos_embedding": [1]}}, "encoder.pos_embedding is no tensor"),
        ({"fingerprint": 7}, "must be text"),
        ({"backbone": ["resnet18"]}, "must be text"),
    ],
)
def test_refuses_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "a.pt", **changes)
    with pytest.raises(InputError, match=message) as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("case", ["missing", "extra", "shape", "dtype", "nan"])
def test_state_dict_is_strict(tmp_path: Path, case: str) -> None:
    weights = dict(build_backbone("resnet18", seed=1).state_dict())
    if case == "missing":
        del weights["layer4.1.conv2.weight"]
    if case == "extra":
        weights["fc.weight"] = torch.zeros(10, 512)
    if case == "shape":
        weights["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    if case == "dtype":
        weights["conv1.weight"] = weights["conv1.weight"].half()
    if case == "nan":
        weights["bn1.bias"] = weights["bn1.bias"] * float("nan")
    key = {"missing": "layer4.1.conv2.weight", "extra": "fc.weight", "nan": "bn1.bias"}.get(case, "conv1.weight")
    with pytest.raises(InputError, match=key):
        read_backbone(saved(tmp_path / "a.pt", state_dict=weights))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nonexistent").joinpath, ("x",))


def test_objects_and_garbage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"format": "r2o.backbone", "x": Evil()}, path)
    with pytest.raises(InputError, match=r"a\.pt cannot be read \(UnpicklingError"):
        read_backbone(path)
    for content in (b"", b"hello", b"\x80\x02", saved(path).read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"backbone .*a\.pt is damaged .*`make pretrain` .* writes it again"):
            read_backbone(path)


@pytest.mark.long
@pytest.mark.usefixtures("shallow")
def test_a_flipped_bit_or_a_cut_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, rng = saved(tmp_path / "a.pt"), random.Random(SEED)
    data, expected = path.read_bytes(), read_backbone(path)
    ends = [*range(200), *range(len(data) - 2000, len(data))]  # the form of the archive; between, weights
    places = rng.sample(range(len(data)), 30) + rng.sample(ends, 50)
    changed = [(p, data[:p] + bytes([data[p] ^ 1 << rng.randrange(8)]) + data[p + 1 :]) for p in places]
    changed += [(cut, data[:cut]) for cut in rng.sample(range(len(data)), 10)]
    told = []
    for place, content in changed:
        path.write_bytes(content)
        try:
            found = read_backbone(path)
        except InputError as error:
            told.append(str(error))
            continue
        assert dataclasses.replace(found, state_dict={}) == dataclasses.replace(expected, state_dict={})
        assert found.state_dict.keys() == expected.state_dict.keys()
        assert all(torch.equal(found.state_dict[k], v) for k, v in expected.state_dict.items()), (SEED, place)
    assert len(told) >= 40
    assert all(str(path) in line and "\n" not in line for line in told), told


def test_a_changed_weight_is_named_as_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    assert torch.load(path, weights_only=True)["backbone"] == "resnet18"  # torch does not mind
    with pytest.raises(DamagedError, match=r"a\.pt is damaged"):
        read_backbone(path)
    with pytest.raises(DamagedError, match=r"weights .*a\.pt is damaged"):
        load_init(path, "resnet18")


def test_unfinished_and_missing_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        load_run_backbone(tmp_path / "none")
    with pytest.raises(InputError, match=r"no backbone\.pt, so this is no finished run"):
        load_run_backbone(tmp_path)
