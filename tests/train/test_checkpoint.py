"""Checkpoints are whole, are not code, and belong to their run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.artifacts.errors import InputError
from train.checkpoint import checkpoints, restore_checkpoint, save_checkpoint
from train.optim import LARS


def trained(steps: int) -> tuple[nn.Module, LARS]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = LARS(model.parameters(), lr=0.1, trust_coefficient=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(run: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(run, *trained(step), step=step, fingerprint="f", keep=keep)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 3)
    model, optimizer = trained(0)
    assert restore_checkpoint(tmp_path, model, optimizer, fingerprint="f") == 3
    expected, expected_optimizer = trained(3)
    for ours, theirs in zip(model.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        a, b = (o.state[p]["momentum_buffer"] for o, p in ((optimizer, ours), (expected_optimizer, theirs)))
        assert torch.equal(a, b)


def test_only_the_newest_are_kept_and_the_newest_is_taken(tmp_path: Path) -> None:
    for step in (1, 2, 10):
        save(tmp_path, step)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000002.pt", "step-00000010.pt"]
    assert restore_checkpoint(tmp_path, *trained(0), fingerprint="f") == 10


def test_no_checkpoint_is_step_zero(tmp_path: Path) -> None:
    assert restore_checkpoint(tmp_path, *trained(0), fingerprint="f") == 0


def test_a_half_written_file_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    leftover = path.with_name(f".{path.name}.abc.tmp")
    leftover.write_bytes(path.read_bytes()[:100])
    assert restore_checkpoint(tmp_path, *trained(0), fingerprint="f") == 1
    assert not leftover.exists()


def test_damage_and_another_run_are_told(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    with pytest.raises(InputError, match=r"step-00000001\.pt belongs to a run with other settings"):
        restore_checkpoint(tmp_path, *trained(0), fingerprint="g")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"step-00000001\.pt is damaged"):
        restore_checkpoint(tmp_path, *trained(0), fingerprint="f")


class _Program:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_a_checkpoint_is_never_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, 1)
    torch.save({"fingerprint": "f", "step": 1, "model": _Program()}, path)
    with pytest.raises(InputError, match="damaged"):
        restore_checkpoint(tmp_path, *trained(0), fingerprint="f")
    assert "executed" not in capsys.readouterr().out
