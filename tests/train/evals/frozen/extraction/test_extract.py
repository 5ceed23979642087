"""A pass over images: its values by a loop, what it leaves when killed, what it does again and what not."""

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.made_images import MadeImages, made_image
from train.distributed.world import World
from train.evals.frozen.extraction.arrays import FEATURES_NAME, batches_of
from train.evals.frozen.extraction.extract import FeaturePass, extract
from train.models.backbone import build_backbone
from train.models.frozen import FrozenModel

ALONE = World(0, 1, torch.device("cpu"))
NORMALISATION = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
LEVELS = ("c4", "c5", "pooled")

pytestmark = [pytest.mark.usefixtures("shallow"), pytest.mark.long]


def a_pass(images: MadeImages | None = None, **changes: object) -> FeaturePass:
    task = FeaturePass(
        label="made", images=images or MadeImages(), weights={"sha256": "abc"}, backbone="resnet18", size=64,
        dilate_c5=False, batch_size=4, dtype="float16",
    )  # fmt: skip
    return replace(task, **changes)


def a_model(scale: float = 1.0) -> FrozenModel:
    backbone = build_backbone("resnet18", seed=1)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(backbone.layer4[0].bn2, name).mul_(0).add_(scale)
    return FrozenModel(backbone, **NORMALISATION)


def never() -> FrozenModel:
    raise AssertionError("the model was loaded, but there was nothing to compute")


def done(folder: Path, task: FeaturePass | None = None, levels: tuple[str, ...] = LEVELS) -> dict[str, bytes]:
    files = extract(task or a_pass(), folder, arrays=levels, load_model=a_model, world=ALONE, note_seconds=0.0)
    return {name: files.path(name).read_bytes() for name in levels}


def stopping_after(batches: int) -> Callable[[], FrozenModel]:
    """A model that Ctrl-C meets after so many batches; the first call tells the shapes."""
    model, calls = a_model(), [0]
    forward = model.forward

    def stopped(images: torch.Tensor) -> object:
        calls[0] += 1
        if calls[0] > batches + 1:
            raise KeyboardInterrupt
        return forward(images)

    model.forward = stopped
    return lambda: model


def test_features_are_those_of_each_image_by_itself(tmp_path: Path) -> None:
    files = extract(a_pass(dtype="float32"), tmp_path, arrays=LEVELS, load_model=a_model, world=ALONE)
    model = a_model()
    for index in range(10):
        pixels = torch.from_numpy(made_image(index)).permute(2, 0, 1)
        square = v2.functional.resize(pixels, [64, 64], v2.InterpolationMode.BICUBIC, antialias=True)
        normal = (square / 255 - torch.tensor((0.5, 0.4, 0.3))[:, None, None]) / torch.tensor((0.2, 0.3, 0.4))[
            :, None, None
        ]
        with torch.no_grad():
            c4, c5 = model.backbone(normal[None])
        for name, expected in (("c4", c4), ("c5", c5)):
            np.testing.assert_allclose(files.open(name)[index], expected[0].permute(1, 2, 0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(files.open("pooled")[index], c5.mean((2, 3))[0], rtol=1e-3, atol=1e-4)
    assert files.open("c4").shape == (10, 4, 4, 256)
    assert files.open("c5").shape == (10, 2, 2, 512)


def test_one_pass_gives_all_levels_and_is_not_done_again(tmp_path: Path) -> None:
    images = MadeImages()
    first = done(tmp_path, a_pass(images))
    assert sorted(images.was_read) == list(range(10))
    files = extract(a_pass(images), tmp_path, arrays=("c5",), load_model=never, world=ALONE)
    assert sorted(images.was_read) == list(range(10))
    assert files.path("c5").read_bytes() == first["c5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c4.npy", "c5.npy", FEATURES_NAME, "pooled.npy"]


def test_float16_is_the_rounded_float32(tmp_path: Path) -> None:
    wide = extract(a_pass(dtype="float32"), tmp_path / "a", arrays=LEVELS, load_model=a_model, world=ALONE)
    short = extract(a_pass(), tmp_path / "b", arrays=LEVELS, load_model=a_model, world=ALONE)
    assert np.array_equal(wide.open("c4").astype(np.float16), short.open("c4"))
    assert short.open("pooled").dtype == np.float32


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_killed_pass_goes_on_by_whole_batches_and_ends_equal(tmp_path: Path, batches: int) -> None:
    images = MadeImages()
    with pytest.raises(KeyboardInterrupt):
        extract(
            a_pass(images), tmp_path / "a", arrays=LEVELS, load_model=stopping_after(batches), world=ALONE,
            note_seconds=0.0,
        )  # fmt: skip
    assert not (tmp_path / "a" / FEATURES_NAME).exists()
    images.was_read.clear()
    assert done(tmp_path / "a", a_pass(images)) == done(tmp_path / "b")
    assert sorted(images.was_read) == list(range(4 * batches, 10))


def test_noted_rows_that_are_not_what_was_written_are_computed_again(tmp_path: Path) -> None:
    images = MadeImages()
    with pytest.raises(KeyboardInterrupt):
        extract(
            a_pass(images), tmp_path / "a", arrays=LEVELS, load_model=stopping_after(2), world=ALONE, note_seconds=0.0
        )
    part, notes = tmp_path / "a" / "c4.npy.part", tmp_path / "a" / "done-0.jsonl"
    content = bytearray(part.read_bytes())
    content[200] ^= 1  # in the rows of batch 0
    part.write_bytes(content)
    notes.write_bytes(notes.read_bytes() + b'{"batch": 2, "chec')  # cut short
    images.was_read.clear()
    assert done(tmp_path / "a", a_pass(images)) == done(tmp_path / "b")
    assert sorted(images.was_read) == [0, 1, 2, 3, 8, 9]


def test_parts_of_another_pass_are_not_taken_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        extract(a_pass(), tmp_path / "a", arrays=LEVELS, load_model=stopping_after(2), world=ALONE, note_seconds=0.0)
    other = a_pass(weights={"sha256": "def"})
    images = MadeImages()
    done(tmp_path / "a", replace(other, images=images))
    assert sorted(images.was_read) == list(range(10))


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"sha256": "def"}}, {"size": 96}, {"dtype": "float32"}, {"dilate_c5": True}, {"batch_size": 5},
        {"backbone": "resnet34"}, {"images": MadeImages(9)}, {"images": MadeImages(salt=1)},
    ],
)  # fmt: skip
def test_whatever_decides_the_values_decides_the_fingerprint(change: dict[str, object]) -> None:
    assert a_pass(**change).fingerprint != a_pass().fingerprint
    assert a_pass().fingerprint == a_pass(label="other words").fingerprint


def test_a_level_that_is_asked_for_later_comes_beside_the_others(tmp_path: Path) -> None:
    first = done(tmp_path / "a", levels=("c5", "pooled"))
    before = (tmp_path / "a" / "c5.npy").stat()
    assert done(tmp_path / "a") == done(tmp_path / "b") == {**first, "c4": (tmp_path / "b" / "c4.npy").read_bytes()}
    assert (tmp_path / "a" / "c5.npy").stat() == before


@pytest.mark.parametrize("damage", ["changed", "cut short", "gone", "of another fingerprint"])
def test_damaged_features_are_said_and_computed_again(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, path = done(tmp_path), tmp_path / "c4.npy"
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    path.write_bytes(content[:-5] if damage == "cut short" else content)
    if damage == "gone":
        path.unlink()
    images = MadeImages()
    if damage == "of another fingerprint":
        sealed = json.loads((tmp_path / FEATURES_NAME).read_text())
        (tmp_path / FEATURES_NAME).write_text(json.dumps({**sealed, "fingerprint": "0" * 64}))
    assert done(tmp_path, a_pass(images)) == first
    assert sorted(images.was_read) == list(range(10))
    assert ("c4.npy is missing or damaged; computed again" in capsys.readouterr().err) == (damage[0] in "cg")


def test_what_float16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    huge = lambda: a_model(scale=1e5)  # noqa: E731
    with pytest.raises(InputError, match=r"c5 reaches .*--set eval_frozen.features.dtype=float32"):
        extract(a_pass(), tmp_path / "a", arrays=LEVELS, load_model=huge, world=ALONE)
    wide = extract(a_pass(dtype="float32"), tmp_path / "b", arrays=LEVELS, load_model=huge, world=ALONE)
    assert wide.open("c5").max() > 65504
    with pytest.raises(InputError, match="not finite"):
        extract(a_pass(dtype="float32"), tmp_path / "c", arrays=LEVELS, load_model=lambda: a_model(np.inf), world=ALONE)


def test_a_full_disk_is_told_of_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    images = MadeImages()
    with pytest.raises(InputError, match=r"no room for features: 1\d\d kB are needed, .* --features"):
        done(tmp_path, a_pass(images))
    assert images.was_read == []


@pytest.mark.parametrize("call", [1, 2])  # the image that tells the shapes, and the first batch
def test_a_lack_of_memory_names_the_batch(tmp_path: Path, call: int) -> None:
    def lacking() -> FrozenModel:
        model = a_model()
        forward, calls = model.forward, [0]

        def forwards(images: torch.Tensor) -> object:
            calls[0] += 1
            return forward(images) if calls[0] < call else torch.empty(2**60, dtype=torch.uint8)

        model.forward = forwards
        return model

    line = (
        "features, made: out of host memory (1.15e+09 GB more asked for); lower eval_frozen.features.batch_size, now "
        "4, or the size of the images, now 64 (eval_frozen.<protocol>.size; of `features`, --size)"
    )
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        extract(a_pass(), tmp_path, arrays=LEVELS, load_model=lacking, world=ALONE)


def test_links_are_refused(tmp_path: Path) -> None:
    done(tmp_path / "a")
    elsewhere = (tmp_path / "a" / "c4.npy").rename(tmp_path / "elsewhere.npy")
    (tmp_path / "a" / "c4.npy").symlink_to(elsewhere)
    with pytest.raises(InputError, match="a link"):
        done(tmp_path / "a")


def test_the_last_batch_is_shorter() -> None:
    assert batches_of(10, 4) == [range(4), range(4, 8), range(8, 10)]
    assert batches_of(3, 4) == [range(3)]
