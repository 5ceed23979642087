"""Checkpoints: whole or absent, plain tensors and numbers, never code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.files import atomic_writer, is_temporary

FOLDER = "checkpoints"


def save_checkpoint(
    run: Path, model: nn.Module, optimizer: Optimizer, *, step: int, fingerprint: str, keep: int
) -> Path:
    """Write `checkpoints/step-00000312.pt` (steps done) and drop all but the newest `keep`."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    state = {
        "fingerprint": fingerprint,
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_writer(path) as file:
        torch.save(state, file)
    for old in checkpoints(run)[:-keep]:
        old.unlink()
    return path


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob("step-*.pt"))


def restore_checkpoint(run: Path, model: nn.Module, optimizer: Optimizer, *, fingerprint: str) -> int:
    """Load the newest checkpoint into model and optimiser.

    Returns:
        the number of steps done, 0 where there is no checkpoint.
    Raises:
        InputError: it is damaged, or of a run with other settings.
    """
    for leftover in (run / FOLDER).glob(".*"):
        if is_temporary(leftover):
            leftover.unlink()
    found = checkpoints(run)
    if not found:
        return 0
    state = _load(found[-1])
    if state["fingerprint"] != fingerprint:
        raise InputError(f"{found[-1]} belongs to a run with other settings; choose another RUN")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _load(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(
            f"checkpoint {path} is damaged ({type(error).__name__}); remove it to go on from the one before"
        ) from error
