"""Checkpoints are whole, are not code, and belong to their run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.foundation.errors import InputError
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.distributed.world import World
from train.engine.build import Training, build_training, unwrapped
from train.engine.checkpoint import Checkpoints, checkpoints, resume

pytestmark = pytest.mark.usefixtures("shallow")
SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 2,
        "global_batch_size": 8,
        "data": {"image_size": 64, "view_size": 64},
        "model": {"backbone": "resnet18", "head_hidden_size": 8, "projection_size": 4},
        "refine": {"clustering_group_size": 8},
        "curriculum": {"hold_epochs": 0},
        "optim": {"trust_coefficient": 0.1},
        "run": {"precision": "fp16"},
    }
)


def trained(steps: int) -> Training:
    """A training whose tensors have all moved `steps` times."""
    plan = plan_batches(SETTINGS, num_samples=8, num_ranks=1)
    training = build_training(SETTINGS, plan, World(0, 1, torch.device("cpu")), max_superpixels=4)
    training.optimizer.param_groups[0]["lr"] = 0.1
    training.scaler.scale(torch.ones(()))  # now it has a scale
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        for p in training.model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) if p.requires_grad else None
        training.optimizer.step()
        training.scaler.update(1000.0 + step)
    return training


def save(run: Path, *steps: int, keep: int = 2, milestones: tuple[int, ...] = ()) -> list[Path]:
    saved = Checkpoints(run, fingerprint="f", keep=keep)
    for step in steps:
        saved.save(trained(step), step=step, milestone=step in milestones)
    saved.wait()
    return checkpoints(run)


def same(ours: Training, theirs: Training) -> bool:
    a, b = unwrapped(ours.model), unwrapped(theirs.model)
    tensors = [(a.state_dict()[name], value) for name, value in b.state_dict().items()]
    for ours_p, theirs_p in zip(a.parameters(), b.parameters(), strict=True):
        if ours_p.requires_grad:
            tensors.append((ours.optimizer.momentum_buffer(ours_p), theirs.optimizer.momentum_buffer(theirs_p)))
    return all(torch.equal(x, y) for x, y in tensors) and ours.scaler.state_dict() == theirs.scaler.state_dict()


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 3)
    training = trained(0)
    assert not same(training, trained(3))
    assert resume(tmp_path, training, fingerprint="f") == 3
    assert same(training, trained(3))


def test_what_is_saved_is_the_state_of_that_moment(tmp_path: Path) -> None:
    training, saved = trained(2), Checkpoints(tmp_path, fingerprint="f", keep=2)
    saved.save(training, step=2)
    for p in unwrapped(training.model).parameters():
        p.data.zero_()  # while it is being written
    saved.wait()
    restored = trained(0)
    resume(tmp_path, restored, fingerprint="f")
    assert same(restored, trained(2))


def test_the_newest_and_the_milestones_are_kept(tmp_path: Path) -> None:
    kept = save(tmp_path, 1, 2, 3, 10, 11, milestones=(2, 10))
    names = ["step-00000002-milestone.pt", "step-00000003.pt", "step-00000010-milestone.pt", "step-00000011.pt"]
    assert [p.name for p in kept] == names
    assert resume(tmp_path, trained(0), fingerprint="f") == 11
    kept[-1].unlink()
    assert resume(tmp_path, trained(0), fingerprint="f") == 10


def test_a_copy_under_another_name_is_not_the_newest_one_and_stays(tmp_path: Path) -> None:
    path, _ = save(tmp_path, 1, 2)
    copies = [path.with_name(name) for name in ("step-before-a-change.pt", "step-00000009 (copy).pt", "step-9.pt")]
    for copy in copies:
        shutil.copy(path, copy)
    assert resume(tmp_path, trained(0), fingerprint="f") == 2
    assert [p.name for p in save(tmp_path, 3)] == ["step-00000002.pt", "step-00000003.pt"]
    assert all(copy.exists() for copy in copies)


def test_a_checkpoint_under_the_name_of_another_step_is_not_gone_on_from(tmp_path: Path) -> None:
    path, newest = save(tmp_path, 1, 2)
    shutil.copy(path, named := path.with_name("step-00000012.pt"))
    with pytest.raises(InputError, match=r"step-00000012\.pt is of step 1, not of the one that its name says"):
        resume(tmp_path, trained(0), fingerprint="f")
    assert named.exists()
    assert newest.exists()
    named.unlink()
    assert resume(tmp_path, trained(0), fingerprint="f") == 2


def test_no_checkpoint_is_step_zero(tmp_path: Path) -> None:
    assert resume(tmp_path, trained(0), fingerprint="f") == 0


def test_a_half_written_file_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    leftover = path.with_name(f".{path.name}.abc.tmp")
    leftover.write_bytes(path.read_bytes()[:100])
    assert resume(tmp_path, trained(0), fingerprint="f") == 1
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["cut short", "a bit", "empty", "another file"])
def test_a_damaged_one_is_set_aside_loudly_and_the_one_before_taken(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, path = save(tmp_path, 1, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut short": data[:-200], "a bit": data, "empty": b"", "another file": b"hello"}[damage])
    training = trained(0)
    assert resume(tmp_path, training, fingerprint="f") == 1
    assert same(training, trained(1))
    told = capsys.readouterr().err
    assert "pretrain: WARNING: checkpoint " in told
    assert "step-00000002.pt is damaged" in told
    behind = "pretrain: WARNING: going on after step 1, as the checkpoint of step 2 is damaged\n"
    assert told.endswith(behind)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("damaged")] == [
        "damaged-step-00000002.pt"
    ]
    assert resume(tmp_path, trained(0), fingerprint="f") == 1
    assert capsys.readouterr().err == behind
    save(tmp_path, 3)
    assert resume(tmp_path, trained(0), fingerprint="f") == 3
    assert capsys.readouterr().err == ""


def test_only_damaged_ones_and_another_run_are_errors(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    with pytest.raises(InputError, match=r"step-00000001\.pt belongs to a run with other settings or shards"):
        resume(tmp_path, trained(0), fingerprint="g")
    path.write_bytes(b"")
    for _ in range(3):
        with pytest.raises(InputError, match=r"holds no whole checkpoint \(damaged ones set aside: 1\); put"):
            resume(tmp_path, trained(0), fingerprint="f")


def test_step_0_alone_is_nothing_to_go_on_from_once_steps_were_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, newest = save(tmp_path, 0, 2)
    assert resume(tmp_path, trained(0), fingerprint="f") == 2
    newest.write_bytes(newest.read_bytes()[:-1])
    for _ in range(3):
        with pytest.raises(InputError, match=r"has begun but holds no whole checkpoint \(damaged ones set aside: 1\)"):
            resume(tmp_path, trained(0), fingerprint="f")
    assert checkpoints(tmp_path) == [first]
    assert capsys.readouterr().err.count("\n") == 1  # that it was set aside
    (tmp_path / "checkpoints" / "damaged-step-00000002.pt").unlink()
    assert resume(tmp_path, trained(0), fingerprint="f") == 0
    (tmp_path / "backbone.pt").touch()
    with pytest.raises(InputError, match=r"has begun but holds no whole checkpoint; put one back as checkpoints/step-"):
        resume(tmp_path, trained(0), fingerprint="f")


class _Program:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_is_never_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = save(tmp_path, 1, 2)
    torch.save({"format_version": 1, "fingerprint": "f", "step": 2, "model": _Program()}, path)
    with pytest.raises(InputError, match=r"step-00000002\.pt cannot be read \(UnpicklingError.*; it is left as it is"):
        resume(tmp_path, trained(0), fingerprint="f")
    assert "executed" not in capsys.readouterr().out
    assert path.exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(5, "Input/output error"), RuntimeError("DefaultCPUAllocator")]
)
def test_what_is_no_failed_checksum_leaves_the_checkpoint(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = save(tmp_path, 1, 2)

    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("torch.load", fail)
        with pytest.raises(InputError, match=r"step-00000002\.pt cannot be read \(.*\); it is left as it is"):
            resume(tmp_path, trained(0), fingerprint="f")
    assert checkpoints(tmp_path) == saved
    assert resume(tmp_path, trained(0), fingerprint="f") == 2


def test_a_checkpoint_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    *_, path = saved = save(tmp_path, 1, 2)
    torch.save({**torch.load(path, weights_only=True), "format_version": 2, "new": True}, path)
    with pytest.raises(InputError, match=r"step-00000002\.pt: format version 2, but this r2o reads 1; it is left as"):
        resume(tmp_path, trained(0), fingerprint="f")
    assert checkpoints(tmp_path) == saved


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


def with_value(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in keys[:-1]:
            state = state[key]
        state[keys[-1]] = value

    return change


WEIGHT = "online.backbone.conv1.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("model"), "model: Field required"),
        (without("fingerprint"), "fingerprint: Field required"),
        (with_value("step", value="2"), "step: Input should be a valid integer"),
        (with_value("step", value=-1), "step: Input should be greater"),
        (with_value("step", value=torch.tensor(2)), "step: Input should be"),
        (with_value("seed", value=1), "its seed is 1"),
        (with_value("optimizer", value=[1, 2]), "optimizer: Input should be a valid dictionary"),
        (with_value("optimizer", value={}), "its optimizer has other members"),
        (with_value("optimizer", "param_groups", value=[{"lr": 0.1}]), "its optimizer has other groups"),
        (with_value("optimizer", "param_groups", 0, "lr", value="0.1"), "its optimizer has a group without"),
        (with_value("optimizer", "param_groups", 0, "momentum", value=torch.ones(3)), "its optimizer has other groups"),
        (with_value("optimizer", "state", 0, value=3), "its optimizer has other state than momenta"),
        (with_value("optimizer", "state", 0, "momentum_buffer", value=torch.ones(2)), r"momentum 0 is \(2,\)"),
        (with_value("optimizer", "state", 999, value={"momentum_buffer": torch.ones(2)}), "momentum 999 is not of it"),
        (with_value("model", value={}), "weight online.backbone.conv1.weight is missing"),
        (with_value("model", WEIGHT, value=torch.ones(2)), rf"weight {WEIGHT} is \(2,\)"),
        (with_value("model", WEIGHT, value=torch.ones(64, 3, 7, 7).double()), "torch.float64, not"),
        (with_value("model", WEIGHT, value="weights"), f"model.{WEIGHT}: Input should be"),
        (with_value("model", "more", value=torch.ones(2)), "weight more is not of it"),
        (with_value("scaler", value=None), "one of them scales its loss"),
        (with_value("scaler", value={}), "its loss scaler has other members"),
        (with_value("scaler", "scale", value=-1.0), "its loss scale is -1.0"),
        (with_value("code", value="print()"), "code: Extra inputs"),
    ],
)  # fmt: skip
def test_a_state_of_another_shape_is_one_line_and_nothing_is_set_aside(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str
) -> None:
    (path,) = saved = save(tmp_path, 2)
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(InputError, match=told) as caught:
        resume(tmp_path, trained(0), fingerprint="f")
    assert "\n" not in str(caught.value)
    assert "it is left as it is" in str(caught.value)
    assert checkpoints(tmp_path) == saved


def test_a_disk_that_fails_is_told_once_asked_and_nothing_whole_is_lost(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    saved = Checkpoints(tmp_path, fingerprint="f", keep=1)
    saved.folder = tmp_path / "checkpoints" / path.name / "below a file"
    saved.save(trained(2), step=2)
    saved.save(trained(3), step=3)  # nothing more is tried
    assert saved.failed()
    with pytest.raises(InputError, match=r"cannot be written to .*: Not a directory"):
        saved.wait()
    assert checkpoints(tmp_path) == [path]
