"""Weights to begin with: a changed file is refused where it has a checksum, and ours have one."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

from pipeline.foundation.errors import InputError
from train.models.backbone import build_backbone
from train.models.formats import sha256_of_weights, to_format, write_weights
from train.models.torch_file import DamagedError
from train.models.weights.init import load_init

SEED = 20261127


@pytest.fixture
def written(tmp_path: Path, shallow: None) -> Path:
    path = tmp_path / "w.safetensors"
    weights = to_format(build_backbone("resnet18", seed=3).state_dict(), "resnet18", "timm")
    write_weights(path, weights, "timm", metadata={"backbone": "resnet18"})
    return path


def header_of(path: Path) -> tuple[int, dict[str, dict[str, str]]]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return 8 + size, json.loads(data[8 : 8 + size])


def test_the_digest_is_of_names_kinds_shapes_and_bytes(written: Path) -> None:
    digest, kinds = hashlib.sha256(), {"float32": "torch.float32", "int64": "torch.int64"}
    for name, value in sorted(safetensors.numpy.load_file(written).items()):
        digest.update(json.dumps([name, kinds[value.dtype.name], list(value.shape)]).encode() + value.tobytes())
    assert header_of(written)[1]["__metadata__"] == {
        "format": "pt", "backbone": "resnet18", "r2o_sha256": digest.hexdigest(),
    }  # fmt: skip
    one = torch.arange(6.0)
    others = [{"a": one.view(2, 3)}, {"a": one.view(torch.int32)}, {"b": one}, {"a": one + 1}, {"a": one.bfloat16()}]
    assert len({sha256_of_weights(weights) for weights in ({"a": one}, *others)}) == 6


@pytest.mark.long
def test_a_flipped_bit_or_a_cut_is_refused_or_changes_nothing(written: Path) -> None:
    rng, data, begin = random.Random(SEED), written.read_bytes(), header_of(written)[0]
    expected = load_init(written, "resnet18").weights
    places = rng.sample(range(begin), 60) + rng.sample(range(begin, len(data)), 20)
    changed = [(p, data[:p] + bytes([data[p] ^ 1 << rng.randrange(8)]) + data[p + 1 :]) for p in places]
    changed += [(cut, data[:cut]) for cut in rng.sample(range(len(data)), 10)]
    told = []
    for place, content in changed:
        written.write_bytes(content)
        try:
            found = load_init(written, "resnet18").weights
        except InputError as error:
            told.append(str(error))
            continue
        assert found.keys() == expected.keys(), (SEED, place)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), (SEED, place)
    assert len(told) >= 60
    assert all(str(written) in line and "\n" not in line for line in told), told


def test_a_changed_weight_is_named_and_a_file_without_checksum_is_taken(written: Path, tmp_path: Path) -> None:
    begin, data = header_of(written)[0], written.read_bytes()
    written.write_bytes(data[: begin + 1000] + bytes([data[begin + 1000] ^ 1]) + data[begin + 1001 :])
    with pytest.raises(DamagedError, match=r"w\.safetensors: its checksum does not fit: it was changed after"):
        load_init(written, "resnet18")
    save_file(load_file(written), tmp_path / "of_others.safetensors")
    assert load_init(tmp_path / "of_others.safetensors", "resnet18").absent == ()


@pytest.mark.usefixtures("shallow")
def test_a_changed_pth_of_others_is_named_and_one_without_checksums_is_taken(tmp_path: Path) -> None:
    weights, path = dict(build_backbone("resnet18", seed=3).state_dict()), tmp_path / "w.pth"
    torch.save(weights, path)
    data = path.read_bytes()
    for place in np.random.default_rng(SEED).integers(len(data) // 4, 3 * len(data) // 4, 10).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:  # bytes between two weights are no content
            found = load_init(path, "resnet18").weights
        except DamagedError as error:
            told = str(error)
            continue
        assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert "w.pth is damaged" in told
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    assert load_init(path, "resnet18").absent == ()
