"""Checkpoints are whole, are not code, and belong to their run."""

from pathlib import Path

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
    assert "step-00000002.pt is damaged" in told
    assert "WARNING" in told
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("damaged")] == [
        "damaged-step-00000002.pt"
    ]
    assert resume(tmp_path, trained(0), fingerprint="f") == 1
    assert capsys.readouterr().err == ""


def test_only_damaged_ones_and_another_run_are_errors(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 1)
    with pytest.raises(InputError, match=r"step-00000001\.pt belongs to a run with other settings"):
        resume(tmp_path, trained(0), fingerprint="g")
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"all 1 checkpoints in .* were damaged"):
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
