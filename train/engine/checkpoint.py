"""Checkpoints: whole or absent, plain tensors and numbers, never code.

A run of any number of ranks has one: all that differs between ranks is a function of (seed, step, place in the batch),
also what torch's global generators give (`train.engine.step.seed_generators`), so that `step` is the position of the
stream, of the schedules and of every generator.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pipeline.artifacts.names import first_problem
from pipeline.artifacts.run_files import BACKBONE_NAME, CHECKPOINTS_FOLDER
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import atomic_writer, is_temporary, sync_folder
from pipeline.foundation.progress import say
from train.distributed.collectives import copy_from_main, from_main
from train.engine.build import Training, unwrapped
from train.engine.fit import misfit
from train.models.torch_file import DamagedError, load_torch_file
from train.run.folder import has_begun
from train.run.host_copy import HostCopies

CHECKPOINT_FORMAT_VERSION = 1
MILESTONE = "-milestone"
DAMAGED = "damaged-"
STEP_NAME = re.compile(rf"(?:{DAMAGED})?step-(\d{{8,}})(?:{MILESTONE})?\.pt")
LEFT = "it is left as it is: choose another RUN, or put a whole checkpoint there"


class Checkpoints:
    """The checkpoints of a run: `checkpoints/step-00000312.pt`, steps done; `…-milestone.pt` are never removed.

    The first is of step 0: from then on a run without a whole one has lost it, and does not begin again by itself.

    Saving copies the state to memory, and a thread writes it while training goes on. It waits for the copies of a GPU.

    Args:
        keep: how many that are no milestones stay.
    Attributes:
        saved_at: when the newest was taken, by time.monotonic. newest_step: its step.
        saves, seconds_writing: how many were written by this process, and how long that took beside the steps.
    """

    def __init__(self, run: Path, *, fingerprint: str, keep: int) -> None:
        self.folder, self._fingerprint, self._keep = run / CHECKPOINTS_FOLDER, fingerprint, keep
        self._writer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: concurrent.futures.Future[None] | None = None
        self._copies = HostCopies()
        self.saved_at = time.monotonic()
        self.newest_step: int | None = None
        self.saves, self.seconds_writing = 0, 0.0

    def save(self, training: Training, *, step: int, milestone: bool = False) -> None:
        """Take the state after `step` steps, and have it written; not where the one before could not be."""
        if self._writing is not None:
            concurrent.futures.wait([self._writing])
        if self.failed():
            return
        state = {
            "format_version": CHECKPOINT_FORMAT_VERSION,
            "fingerprint": self._fingerprint,
            "step": step,
            "seed": training.settings.seed,
            "model": unwrapped(training.model).state_dict(),
            "optimizer": training.optimizer.state_dict(),
            "scaler": None if training.scaler is None else training.scaler.state_dict(),
        }
        path = self.folder / f"step-{step:08d}{MILESTONE if milestone else ''}.pt"
        self._writing = self._writer.submit(self._write, path, *self._copies.take(state))
        self.saved_at, self.newest_step = time.monotonic(), step

    def failed(self) -> bool:
        """Whether the last one could not be written; `wait` tells why."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def wait(self) -> None:
        """Return once what was saved is on disk. Raises InputError where it could not be written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except Exception as error:
            cause = _of_the_disk(error)
            if cause is None:
                raise
            whole = checkpoints(self.folder.parent)
            rest = f"{whole[-1]} is whole" if whole else "there is none yet"
            raise InputError(
                f"a checkpoint cannot be written to {self.folder}: {cause.strerror}; {rest}; make room and start the "
                "same command again"
            ) from error

    def _write(self, path: Path, state: dict[str, Any], is_copied: Callable[[], None]) -> None:
        is_copied()
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            torch.save(state, file)
        rolling = [old for old in checkpoints(self.folder.parent) if not old.stem.endswith(MILESTONE)]
        for old in rolling[: -self._keep]:
            old.unlink()
        self.saves, self.seconds_writing = self.saves + 1, self.seconds_writing + time.monotonic() - began


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """The OSError that an error comes from; torch.save raises one of its own over it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. A file of another name, such as somebody's copy of one, is none."""
    return sorted(path for path in (run / CHECKPOINTS_FOLDER).glob("step-*.pt") if STEP_NAME.fullmatch(path.name))


def resume(run: Path, training: Training, *, fingerprint: str) -> int:
    """Load the newest whole checkpoint into every rank's `training`, whose model is not distributed yet.

    The main rank reads it and gives it to the others. A damaged one is set aside as `damaged-step-….pt`, loudly.

    Returns:
        the number of steps done, 0 where nothing has begun.
    Raises:
        InputError: the run has begun and none is whole, the newest cannot be read, or it is of a run with other
            settings; on every rank.
    """
    state = json.loads(from_main(lambda: _restore(run, training, fingerprint), training.world))
    if state["step"]:
        copy_from_main(_tensors(training), training.world)
    if training.scaler is not None and state["scaler"] is not None:
        training.scaler.load_state_dict(state["scaler"])
    return int(state["step"])


def _tensors(training: Training) -> list[Tensor]:
    """All tensors that steps change."""
    learned = [p for group in training.optimizer.param_groups for p in group["params"]]
    momenta = [training.optimizer.momentum_buffer(p) for p in learned]
    return [*unwrapped(training.model).state_dict().values(), *momenta]


def _restore(run: Path, training: Training, fingerprint: str) -> str:
    """Load the newest whole checkpoint here; gives what of it is no tensor, as JSON."""
    for leftover in (run / CHECKPOINTS_FOLDER).glob(".*"):
        if is_temporary(leftover):
            leftover.unlink()
    for path in reversed(checkpoints(run)):
        state = _whole(path)
        if state is None:
            continue
        if state["fingerprint"] != fingerprint:
            raise InputError(f"{path} belongs to a run with other settings or shards; choose another RUN")
        if state["step"] != _step_of(path):
            raise InputError(f"checkpoint {path} is of step {state['step']}, not of the one that its name says; {LEFT}")
        if problem := misfit(state, training):
            raise InputError(f"checkpoint {path} does not fit this run ({problem}); {LEFT}")
        unwrapped(training.model).load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        lost = _newest_damaged(run)
        if state["step"] == 0 and (lost or (run / BACKBONE_NAME).exists()):
            break  # steps were done, so that to go on from here is to begin again
        if lost > state["step"]:
            say(f"pretrain: WARNING: going on after step {state['step']}, as the checkpoint of step {lost} is damaged")
        return json.dumps({"step": state["step"], "scaler": state["scaler"]})
    if has_begun(run):
        aside = f" (damaged ones set aside: {count})" if (count := len(_set_aside(run))) else ""
        raise InputError(
            f"{run} has begun but holds no whole checkpoint{aside}; put one back as {CHECKPOINTS_FOLDER}/step-….pt, "
            f"choose another RUN, or remove {run} to begin again"
        )
    return json.dumps({"step": 0, "scaler": None})


def _whole(path: Path) -> dict[str, Any] | None:
    """What a checkpoint holds; None where it is damaged, after setting it aside."""
    try:
        return read_checkpoint(path)
    except DamagedError as error:
        aside = path.with_name(f"{DAMAGED}{path.name}")
        path.rename(aside)
        sync_folder(path.parent)
        say(f"pretrain: WARNING: {error}; it is {aside.name} now")
        return None


def _set_aside(run: Path) -> list[Path]:
    """The damaged checkpoints of a run, oldest first."""
    return sorted((run / CHECKPOINTS_FOLDER).glob(f"{DAMAGED}step-*.pt"))


def _newest_damaged(run: Path) -> int:
    """The step of the newest checkpoint that is set aside, 0 where none is."""
    return max(map(_step_of, _set_aside(run)), default=0)


def _step_of(path: Path) -> int:
    """The step that a checkpoint's name says, 0 where it says none."""
    return int(found[1]) if (found := STEP_NAME.fullmatch(path.name)) else 0


def read_checkpoint(path: Path, *, own: bool = True) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU. No code in it is run.

    Args:
        own: it lies in its run, so that it may be no link.
    Raises:
        DamagedError: a checksum does not fit, or the end of the file is missing.
        InputError: it cannot be read, is of another format, or holds something else than a checkpoint's state.
    """
    state = load_torch_file(path, what="checkpoint", own=own)
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != CHECKPOINT_FORMAT_VERSION:
        raise InputError(
            f"checkpoint {path}: format version {version!r}, but this r2o reads {CHECKPOINT_FORMAT_VERSION}; it is "
            "left as it is: use the r2o that wrote it"
        )
    try:
        _State.model_validate(state)
    except ValidationError as error:
        raise InputError(f"checkpoint {path} holds no state of a run ({first_problem(error)}); {LEFT}") from None
    return dict(state)


class _State(BaseModel):
    """The members of a checkpoint."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    format_version: int
    fingerprint: str
    step: Annotated[int, Field(ge=0)]
    seed: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None
