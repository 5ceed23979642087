"""Files of every form: what is read is read without running it, and what is not is told in one line."""

import argparse
import collections
import io
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from pipeline.foundation.errors import InputError
from tests.train.models.weights.conftest import Weights, prefixed, weights_of
from train.models.torch_file import DamagedError
from train.models.weights.load import load_backbone

SEED = 20261127


@pytest.fixture(scope="module")
def _cache() -> dict[str, Weights]:
    return {}


@pytest.fixture
def weights(_cache: dict[str, Weights]) -> Weights:
    return _cache.setdefault("resnet18", weights_of("resnet18"))


class Options(dict[str, Any]):
    """A dict of a project's own class, as configs are."""


class Meter:
    def __init__(self) -> None:
        self.history, self.recent = collections.deque([1.0, 2.0]), np.float32(3)


def arrays(weights: Weights) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in weights.items()}


def written(path: Path, form: str, weights: Weights) -> Path:
    """The weights in one of the forms that people have."""
    if form == "legacy":
        torch.save(weights, path, _use_new_zipfile_serialization=False)
    elif form == "legacy with objects":
        content = {"state_dict": weights, "args": argparse.Namespace(lr=1), "best": np.float64(1.5)}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif form == "npz":
        with path.open("wb") as file:
            np.savez(file, **arrays(weights))
    elif form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"model": arrays(weights), "__author__": "x"}, protocol=int(form[-1])))
    elif form == "big-endian arrays":
        path.write_bytes(pickle.dumps({k: v.astype(v.dtype.newbyteorder(">")) for k, v in arrays(weights).items()}))
    else:
        more = {
            "namespace": {"args": argparse.Namespace(lr=0.1)},
            "numpy scalar": {"best": np.float64(1.5)},
            "arrays": {},
            "own dict": {"config": Options(lr=0.1), "groups": collections.defaultdict(list, a=[1])},
            "meter": {"meter": Meter(), "where": Path("x")},
            "parameters": {},
        }[form]
        values: Any = arrays(weights) if form == "arrays" else weights
        if form == "parameters":
            values = {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in weights.items()}
        torch.save({"state_dict": values, **more}, path)
    return path


FORMS = [
    "legacy", "legacy with objects", "safetensors", "npz", "pickle 2", "pickle 4", "pickle 5", "big-endian arrays",
    "namespace", "numpy scalar", "arrays", "own dict", "meter", "parameters",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights_whatever_it_is_called(form: str, weights: Weights, tmp_path: Path) -> None:
    loaded = load_backbone(written(tmp_path / "w.bin", form, weights))
    assert loaded.loaded == 1.0
    assert loaded.weights.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.weights.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_told(dtype: torch.dtype, weights: Weights, tmp_path: Path) -> None:
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
    torch.save(cast, tmp_path / "w.pth")
    loaded = load_backbone(tmp_path / "w.pth")
    assert loaded.notes == (f"made float32 of {str(dtype).removeprefix('torch.')}",)
    assert all(torch.equal(value, cast[key].to(value.dtype)) for key, value in loaded.weights.items())
    assert {value.dtype for value in loaded.weights.values()} == {torch.float32, torch.int64}


class Evil:
    """What a pickle that runs a program holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_code_is_run(form: str, weights: Weights, tmp_path: Path) -> None:
    path, made = tmp_path / "w.pth", tmp_path / "made"
    content = {"state_dict": weights if form != "pickle" else arrays(weights), "hook": Evil(made)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert load_backbone(path).left_out == {"hook": 1}
    assert not made.exists()
    pickle.loads(pickle.dumps(Evil(made)))
    assert made.exists()  # it would have been


def test_a_dtype_of_pointers_is_not_made(tmp_path: Path) -> None:
    """NumPy's own way takes a dtype's flags from the file, and then the file's bytes as addresses."""
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"conv1.weight": np.zeros(2, dtype=[("a", "f4")])}))
    with pytest.raises(InputError, match="no plain number"):
        load_backbone(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "a page of a website"),
        (b"\n\n <html>", "a page of a website"),
        (b"\x1f\x8b\x08...", "compressed by gzip"),
        (b"\x89HDF\r\n", "is HDF5"),
        (b"hello", r"is not a file of weights \(it begins with b'hello'\)"),
        (b"\x80\x04garbage", "is not a file of weights|damaged|cannot be read"),
        (b"\x93NUMPY\x01\x00", "is not a file of weights|damaged"),
        (b"PK\x03\x04", "is damaged"),
    ],
)
def test_what_is_no_file_of_weights_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_backbone(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["arrays", "legacy with objects", "safetensors", "npz", "pickle 4", "namespace"])
def test_a_cut_file_is_refused(form: str, weights: Weights, tmp_path: Path) -> None:
    path = written(tmp_path / f"w{'.safetensors' if form == 'safetensors' else '.pth'}", form, weights)
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.999):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError) as caught:
            load_backbone(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["arrays", "npz"])
def test_a_changed_byte_is_named_as_damage(form: str, weights: Weights, tmp_path: Path) -> None:
    path = written(tmp_path / "w.pth", form, weights)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda one: one.file_size)
    data = bytearray(path.read_bytes())
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"w\.pth is damaged"):
        load_backbone(path)


def test_arrays_of_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.array({"b": 1}, dtype=object))
    with pytest.raises(InputError, match=r"w\.npz is not a file of weights \(ValueError: Object arrays"):
        load_backbone(tmp_path / "w.npz")


def test_whole_models_and_folders_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "w.pth")
    with pytest.raises(
        InputError, match=r"whole pickled model \(torch\.nn\.modules\.container\.Sequential\).*state_dict"
    ):
        load_backbone(tmp_path / "w.pth")
    torch.save({"model": torchvision.models.resnet18(), "epoch": 1}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"whole pickled model \(torchvision\.models\.resnet\.ResNet\)"):
        load_backbone(tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"a folder without backbone\.pt"):
        load_backbone(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        load_backbone(tmp_path / "none.pth")


def test_a_refusal_tells_what_is_there_and_what_came_nearest(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"

    def told(content: Any, **kwargs: Any) -> str:
        torch.save(content, path)
        with pytest.raises(InputError) as caught:
            load_backbone(path, **kwargs)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    short = {key: value for key, value in weights.items() if key != "layer4.0.bn2.bias"}
    line = told({"state_dict": prefixed("module.", short)})
    assert "not resnet18 as torchvision (100.0 % there): 1 weights are missing, the first is layer4.0.bn2.bias" in line
    assert f"it holds {len(short)} tensors (" in line
    assert "state_dict/module.conv1.weight (64, 3, 7, 7)" in line
    assert "25 weights are not of it" not in line
    line = told(prefixed("strange.", weights))
    assert "100.0 % of a resnet18 lie under 'strange', where no format has one" in line
    line = told(weights, format="moco", part="target")
    assert "no target network" in line
    line = told(prefixed("encoder_q.", weights), format="dino")
    assert "is not dino: looked for 'student' or 'teacher', but 100.0 % of a resnet18 lie under 'encoder_q'" in line
    assert "holds no backbone that r2o knows" in told({"a.weight": torch.ones(2, 3)})
    assert "is a whole resnet18, not resnet50 as torchvision" in told(weights, backbone="resnet50")
    assert "there are auto, r2o, " in told(weights, format="keras")
    assert "there are resnet18, " in told(weights, backbone="resnet17")
    assert "several whole backbones ('model/', 'net/')" in told({"model": weights, "net": weights})
    assert "layer1.0.se.weight" in told({**weights, "layer1.0.se.weight": torch.ones(1)})
    wide = {**weights, "conv1.weight": torch.ones(64, 3, 3, 3)}
    assert "conv1.weight is (64, 3, 3, 3) torch.float32, but resnet18 has (64, 3, 7, 7)" in told(wide)
    nan = {**weights, "bn1.bias": weights["bn1.bias"] * torch.nan}
    assert "bn1.bias holds values that are not finite" in told(nan)
    assert "1 weights are missing" in told({k: v for k, v in weights.items() if k != "bn1.num_batches_tracked"})
    assert "no backbone that r2o has" not in told({**weights, "layer1.7.conv1.weight": torch.ones(1)})


def test_which_network_is_taken_is_told(weights: Weights, tmp_path: Path) -> None:
    content = {"student": prefixed("module.backbone.", weights), "teacher": prefixed("backbone.", weights)}
    torch.save(content, tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth").notes == ("took teacher/backbone; the file also has student",)
    line = str(load_backbone(tmp_path / "w.pth"))
    assert line == (
        f"resnet18 as dino, 100 % of its weights loaded; left out: student/module.backbone ({len(weights)}); "
        "took teacher/backbone; the file also has student"
    )


@pytest.mark.long
def test_recursion_and_deep_nesting_end(weights: Weights, tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": arrays(weights)}
    content["self"] = content
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    assert load_backbone(tmp_path / "w.pkl").loaded == 1.0
    for _ in range(40):
        content = {"a": content, "b": content}
    torch.save(content, tmp_path / "w.pkl")
    with pytest.raises(InputError, match="more than 1000000 members"):
        load_backbone(tmp_path / "w.pkl")
    deep = io.BytesIO()
    deep.write(b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b".")
    (tmp_path / "w.pkl").write_bytes(deep.getvalue())
    with pytest.raises(InputError):
        load_backbone(tmp_path / "w.pkl")


@pytest.mark.long
@pytest.mark.parametrize("form", ["pickle 2", "pickle 4", "legacy with objects", "own dict", "npz", "safetensors"])
def test_a_changed_byte_is_read_or_told_and_nothing_else(form: str, weights: Weights, tmp_path: Path) -> None:
    """Forms without checksums cannot tell; but no other error comes out, and no line lacks the file's name."""
    small = {key: value for key, value in weights.items() if value.numel() < 3000}
    path, rng = written(tmp_path / "w.safetensors", form, small), random.Random(SEED)
    data = path.read_bytes()
    ends = [*range(min(len(data), 4000)), *range(max(len(data) - 2000, 0), len(data))]
    for place in rng.sample(ends, 250):
        path.write_bytes(data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :])
        with pytest.raises(InputError) as caught:
            load_backbone(path)
        assert str(path) in str(caught.value), (SEED, place)
        assert "\n" not in str(caught.value), (SEED, place)
