"""The stage graph of a recipe: skip what is finished and unchanged, resume what is not, redo what has changed.

A stage's state lies in WORK/.r2o/<stage>.json, written before it starts and again when it has finished. The output
of a stage whose fingerprint has changed is moved to WORK/.r2o/replaced/, never deleted; only a stage that reconciles
keeps it. An output that has no state was not made by this workflow: it is left alone and the run is refused.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.config import Recipe
from pipeline.foundation.errors import InputError
from pipeline.foundation.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE
from pipeline.foundation.files import write_atomic
from pipeline.foundation.locks import only_holder
from pipeline.foundation.progress import format_seconds
from pipeline.launchers import local
from pipeline.stages import (
    EVALUATIONS,
    Stage,
    evaluation_stage,
    pretrain_stage,
    preview_stage,
    scenes_stage,
    shards_stage,
)

STATE_FOLDER = ".r2o"
SHOWN_DIFFERENCES = 3


class StageState(BaseModel):
    """What is known of a stage. `parts` are what its fingerprint covers; `seconds` of the call that finished it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    status: Literal["started", "finished"]
    fingerprint: str
    parts: dict[str, Any]
    command: tuple[str, ...]
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done about a stage, and where it is `redo`, what has changed."""

    action: Literal["skip", "start", "resume", "redo"]
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.action != "redo":
            return {"skip": "finished and unchanged", "start": "not started", "resume": "not finished"}[self.action]
        more = len(self.changed) - SHOWN_DIFFERENCES
        return f"changed ({'; '.join(self.changed[:SHOWN_DIFFERENCES])}{f'; and {more} more' if more > 0 else ''})"


def workflow(recipe: Recipe, *, work: Path, options: tuple[str, ...] = ()) -> tuple[Stage, ...]:
    """The stages of `r2o run` in an order in which each comes after its needs.

    Without `workflow.images` the embedded scenes are generated. An evaluation takes the data that `workflow.<name>`
    names, without it what the scenes hold for it, and is left out where there is neither.
    """
    settings, scenes, shards, run = recipe.workflow, work / "scenes", work / "shards", work / "pretrain"
    images = settings.images or scenes / "images"
    stages = [] if settings.images else [scenes_stage(recipe.scenes, out=scenes, options=options)]
    stages += [
        shards_stage(recipe.shards, images=images, shards=shards, options=options),
        preview_stage(shards=shards, out=work / "superpixels.png", count=settings.preview_images),
        pretrain_stage(recipe.pretrain, shards=shards, run=run, nproc=settings.nproc, options=options),
    ]
    for name, evaluation in EVALUATIONS.items():
        generated = None if settings.images or evaluation.of_scenes is None else scenes / evaluation.of_scenes
        if data := settings.data_of(name) or generated:
            made = evaluation_stage(evaluation, recipe.evaluations[name], run=run, data=data, options=options)
            stages.append(made)
    return tuple(_connected(stages))


def _connected(stages: Sequence[Stage]) -> list[Stage]:
    """Each input that lies in another stage's output becomes a need of that stage."""

    def maker(path: Path) -> str | None:
        return next((s.name for s in stages if s.output == path or s.output in path.parents), None)

    connected = []
    for stage in stages:
        needs = tuple(dict.fromkeys(name for path in stage.inputs.values() if (name := maker(path))))
        outside = {option: path for option, path in stage.inputs.items() if not maker(path)}
        connected.append(replace(stage, needs=needs, inputs=outside))
    return connected


def fingerprint_parts(
    stages: Sequence[Stage], *, contents: Mapping[str, Mapping[str, str]], version: str
) -> dict[str, dict[str, Any]]:
    """What decides each stage's result: its settings, outside inputs, needs and the code's version.

    Args:
        contents: per stage and input option, a digest of the folder that no stage makes. Paths do not enter, nor
            does the number of processes.
    """
    parts: dict[str, dict[str, Any]] = {}
    for stage in stages:
        parts[stage.name] = {
            "settings": dict(stage.settings),
            "inputs": dict(contents.get(stage.name, {})),
            "needs": {name: fingerprint(**parts[name]) for name in stage.needs},
            "version": version,
        }
    return parts


def verdicts(stages: Sequence[Stage], *, work: Path, version: str) -> dict[str, Verdict]:
    """What `run_stages` would do about each stage. Raises InputError where an outside input is missing."""
    parts = fingerprint_parts(stages, contents=input_contents(stages), version=version)
    return {stage.name: _judge(stage, read_state(work, stage.name), parts[stage.name]) for stage in stages}


def run_stages(
    stages: Sequence[Stage],
    *,
    work: Path,
    version: str,
    checks: Mapping[str, Callable[[], object]] | None = None,
    start: Callable[[Stage], int] = local.start,
) -> int:
    """Run the stages in order and stop at the first that fails; gives its exit code, or 0.

    Args:
        checks: by stage name, called before it starts; raises InputError where it could not run.
        start: runs one stage to its end and gives the exit code.
    Raises:
        InputError: an input is missing, an output is not ours, or another run works on `work`.
    """
    parts = fingerprint_parts(stages, contents=input_contents(stages), version=version)
    with _only_run(work):
        found = {stage.name: _judge(stage, read_state(work, stage.name), parts[stage.name]) for stage in stages}
        for number, stage in enumerate(stages, start=1):
            verdict, title = found[stage.name], f"[{number}/{len(stages)}] {stage.name} → {stage.output}"
            if verdict.action == "skip":
                print(f"{title}: {verdict}, skipped", flush=True)
                continue
            if check := (checks or {}).get(stage.name):
                check()
            begins = {"start": "starting", "resume": "going on"}.get(verdict.action, f"starting again, {verdict}")
            print(f"{title}: {begins}{_make_room(stage, verdict, work)}", flush=True)
            if code := _run_stage(stage, work=work, parts=parts[stage.name], start=start):
                return code
    return 0


def _run_stage(stage: Stage, *, work: Path, parts: dict[str, Any], start: Callable[[Stage], int]) -> int:
    command = tuple(local.command_of(stage))
    state = StageState(
        stage=stage.name, status="started", fingerprint=fingerprint(**parts), parts=parts, command=command
    )
    write_state(work, state)
    began = time.monotonic()
    if code := start(stage):
        if code not in (EXIT_INTERRUPTED, EXIT_REQUEUE):
            print(f"r2o: stage {stage.name}: exit code {code}; alone: {shlex.join(command)}", file=sys.stderr)
        return code
    assert stage.marker.exists(), f"stage {stage.name} succeeded without its marker {stage.marker}"
    seconds = time.monotonic() - began
    write_state(work, state.model_copy(update={"status": "finished", "seconds": round(seconds, 1)}))
    print(f"{stage.name}: done in {format_seconds(seconds)}", flush=True)
    return 0


def _judge(stage: Stage, state: StageState | None, parts: Mapping[str, Any]) -> Verdict:
    if state is None:
        if _holds_anything(stage.output):
            raise InputError(
                f"{stage.output} exists, but this workflow did not make it; "
                "move it away or give another folder with --work"
            )
        return Verdict(action="start")
    if state.fingerprint != fingerprint(**parts):
        return Verdict(action="redo", changed=tuple(differences(parts, state.parts)))
    if state.status == "finished" and stage.marker.exists():
        return Verdict(action="skip")
    return Verdict(action="resume" if _holds_anything(stage.output) else "start")


def _make_room(stage: Stage, verdict: Verdict, work: Path) -> str:
    """Move an output of another fingerprint away; gives the words that say where to."""
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    if verdict.action != "redo" or stage.reconciles or not os.path.lexists(stage.output):
        return ""
    state = read_state(work, stage.name)
    assert state is not None
    base = work / STATE_FOLDER / "replaced" / f"{stage.name}-{state.fingerprint[:8]}"
    base.parent.mkdir(exist_ok=True)
    names = (base if n == 0 else base.with_name(f"{base.name}-{n}") for n in range(1_000_000))
    kept = next(path for path in names if not os.path.lexists(path))
    try:
        stage.output.rename(kept)
    except OSError as error:
        raise InputError(f"{stage.output} cannot be moved to {kept} ({error.strerror}); move it away") from None
    return f"; the former result is kept in {kept}"


def _holds_anything(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def read_state(work: Path, name: str) -> StageState | None:
    """A stage's state, None where it never started. Raises InputError where the file is damaged."""
    path = work / STATE_FOLDER / f"{name}.json"
    try:
        return StageState.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        raise InputError(f"{path} is damaged; remove it together with the output of stage {name}") from None


def write_state(work: Path, state: StageState) -> None:
    """Store a stage's state atomically."""
    write_atomic(work / STATE_FOLDER / f"{state.stage}.json", state.model_dump_json(indent=1) + "\n")


def input_contents(stages: Sequence[Stage]) -> dict[str, dict[str, str]]:
    """A digest of every folder that stages read from outside. Raises InputError where one is missing."""
    return {
        stage.name: {option: folder_digest(path) for option, path in stage.inputs.items()}
        for stage in stages
        if stage.inputs
    }


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 over the relative names and sizes of all files below a folder; contents are not read.

    Links are followed, a folder that is met again is not.
    """
    if not folder.is_dir():
        given = ", ".join(f"workflow.{name}" for name in ("images", *EVALUATIONS))
        raise InputError(f"{folder}: no such folder (given as {given} or on the command line)")
    digest, seen = hashlib.sha256(), set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        for path in sorted(os.path.join(root, name) for name in names):
            size = os.stat(path).st_size if os.path.exists(path) else None
            digest.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{size}\n".encode())
    return digest.hexdigest()


@contextmanager
def _only_run(work: Path) -> Iterator[None]:
    """Hold WORK's lock. Raises InputError where another run holds it or WORK is no folder."""
    try:
        (work / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work} cannot be the work folder ({error.strerror}); give another with --work") from None
    with only_holder(
        work / STATE_FOLDER / "lock",
        otherwise=f"another `r2o run` works on {work}; wait for it or give another --work",
    ):
        yield
