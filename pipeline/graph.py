"""Runs a graph of stages: skip what is finished and unchanged, resume what is not, redo what has changed.

A stage's state is written before it starts and again when it has finished (pipeline/states.py). What it reads from
outside is told by content (pipeline/inputs.py). The output of a stage whose fingerprint has changed is moved to
WORK/.r2o/replaced/, never deleted; only a stage that reconciles keeps it. An output that has no state was not made by
this workflow: it is left alone and the run is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.foundation.errors import InputError, os_errors_named
from pipeline.foundation.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE
from pipeline.foundation.files import refuse_link, sync_folder
from pipeline.foundation.locks import only_holder
from pipeline.foundation.progress import format_seconds
from pipeline.inputs import Listed, digest_of_sizes, list_folder, load_contents, peek, read_contents, require_as_listed
from pipeline.launchers import local
from pipeline.stages import Stage
from pipeline.states import CONTENTS_NAME, STATE_FOLDER, StageState, read_state, write_state

SHOWN_DIFFERENCES = 3
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
Listings = Mapping[Path, Sequence[Listed]]  # of every folder that stages read from outside


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be done about a stage; for `redo`, what has changed; `unread`: number of input files not compared."""

    action: Literal["skip", "start", "resume", "redo"]
    changed: tuple[str, ...] = ()
    unread: int = 0

    def __str__(self) -> str:
        if self.action == "skip" and self.unread:
            return f"finished and unchanged, but {self.unread} of its input files are still to be compared"
        if self.action != "redo":
            return {"skip": "finished and unchanged", "start": "not started", "resume": "not finished"}[self.action]
        more = len(self.changed) - SHOWN_DIFFERENCES
        shown = _HASH.sub(r"\1…", "; ".join(self.changed[:SHOWN_DIFFERENCES]))
        return f"changed ({shown}{f'; and {more} more' if more > 0 else ''})"


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
    """What `run_stages` would do about each stage, told at once: no input is read, and nothing is written.

    Inputs are compared by what `run_stages` has read of them before. Files that were touched since, and have the same
    size, count as unchanged, and the verdict says how many they are. Raises InputError where an input is missing.
    """
    listings = _listings(stages, work)
    known = load_contents(work / STATE_FOLDER / CONTENTS_NAME)
    peeks = {folder: peek(folder, listed, known) for folder, listed in listings.items()}
    states = {stage.name: read_state(work, stage.name) for stage in stages}
    contents: dict[str, dict[str, str]] = {}
    for stage in stages:
        state = states[stage.name]
        former = state.parts.get("inputs") if state else None
        former = former if isinstance(former, dict) else {}
        contents[stage.name] = {
            option: peeks[path].digest or former.get(option, "not read") for option, path in stage.inputs.items()
        }
    judged = _Judge(stages, listings, contents=contents, version=version)
    found = {}
    for stage in stages:
        state = states[stage.name]
        is_by_content = state is not None and state.inputs_by == "content"
        unread = sum(peeks[path].unread for path in stage.inputs.values()) if is_by_content else 0
        found[stage.name] = replace(judged(stage, state), unread=unread)
    return found


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
        InputError: an input is missing or changes meanwhile, an output is not ours, or another run works on `work`.
    """
    listings = _listings(stages, work)
    with _only_run(work):
        digests = read_contents(listings, work / STATE_FOLDER / CONTENTS_NAME)
        contents = {stage.name: {option: digests[path] for option, path in stage.inputs.items()} for stage in stages}
        judge = _Judge(stages, listings, contents=contents, version=version)
        found = {stage.name: judge(stage, read_state(work, stage.name)) for stage in stages}
        for stage in reversed(stages):  # a need whose state is of content has only such after it
            _tell_by_content(stage, found[stage.name], judge.parts[stage.name], work)
        for number, stage in enumerate(stages, start=1):
            verdict, title = found[stage.name], f"[{number}/{len(stages)}] {stage.name} → {stage.output}"
            if verdict.action == "skip":
                print(f"{title}: {verdict}, skipped", flush=True)
                continue
            if check := (checks or {}).get(stage.name):
                check()
            begins = {"start": "starting", "resume": "going on"}.get(verdict.action, f"starting again, {verdict}")
            print(f"{title}: {begins}{_make_room(stage, verdict, work)}", flush=True)
            if code := _run_stage(stage, work=work, parts=judge.parts[stage.name], start=start, listings=listings):
                return code
    return 0


def _run_stage(
    stage: Stage, *, work: Path, parts: dict[str, Any], start: Callable[[Stage], int], listings: Listings
) -> int:
    command = tuple(local.command_of(stage))
    state = StageState(
        stage=stage.name,
        status="started",
        fingerprint=fingerprint(**parts),
        parts=parts,
        inputs_by="content",
        command=command,
    )
    write_state(work, state)
    began = time.monotonic()
    if code := start(stage):
        if code not in (EXIT_INTERRUPTED, EXIT_REQUEUE):
            print(f"r2o: stage {stage.name}: exit code {code}; alone: {shlex.join(command)}", file=sys.stderr)
        return code
    assert stage.marker.exists(), f"stage {stage.name} succeeded without its marker {stage.marker}"
    for folder in stage.inputs.values():
        require_as_listed(folder, listings[folder], but=work, stage=stage.name)
    seconds = time.monotonic() - began
    write_state(work, state.model_copy(update={"status": "finished", "seconds": round(seconds, 1)}))
    print(f"{stage.name}: done in {format_seconds(seconds)}", flush=True)
    return 0


class _Judge:
    """Compares the state of a stage with what decides its result now, by the digests that the state has."""

    def __init__(
        self, stages: Sequence[Stage], listings: Listings, *, contents: Mapping[str, Mapping[str, str]], version: str
    ) -> None:
        sizes = {s.name: {option: digest_of_sizes(listings[p]) for option, p in s.inputs.items()} for s in stages}
        self.parts = fingerprint_parts(stages, contents=contents, version=version)
        self._by_sizes = fingerprint_parts(stages, contents=sizes, version=version)

    def __call__(self, stage: Stage, state: StageState | None) -> Verdict:
        if state is None:
            if _holds_anything(stage.output):
                raise InputError(
                    f"{stage.output} exists, but this workflow did not make it; "
                    "move it away or give another folder with --work"
                )
            return Verdict(action="start")
        parts = (self.parts if state.inputs_by == "content" else self._by_sizes)[stage.name]
        if state.fingerprint != fingerprint(**parts):
            return Verdict(action="redo", changed=tuple(differences(parts, state.parts)))
        if state.status == "finished" and stage.marker.exists():
            return Verdict(action="skip")
        return Verdict(action="resume" if _holds_anything(stage.output) else "start")


def _tell_by_content(stage: Stage, verdict: Verdict, parts: dict[str, Any], work: Path) -> None:
    """From now on content decides about a stage that 0.1.0 left, and that is unchanged by its measure."""
    state = read_state(work, stage.name)
    if state and state.inputs_by == "sizes" and verdict.action != "redo":
        new = {"parts": parts, "fingerprint": fingerprint(**parts), "inputs_by": "content"}
        write_state(work, state.model_copy(update=new))


def _make_room(stage: Stage, verdict: Verdict, work: Path) -> str:
    """Move an output of another fingerprint away; gives the words that say where to."""
    stage.output.parent.mkdir(parents=True, exist_ok=True)
    if verdict.action != "redo" or stage.reconciles or not os.path.lexists(stage.output):
        return ""
    state = read_state(work, stage.name)
    assert state is not None
    base = work / STATE_FOLDER / "replaced" / f"{stage.name}-{state.fingerprint[:8]}"
    refuse_link(base.parent)
    base.parent.mkdir(exist_ok=True)
    names = (base if n == 0 else base.with_name(f"{base.name}-{n}") for n in range(1_000_000))
    kept = next(path for path in names if not os.path.lexists(path))
    try:
        stage.output.rename(kept)
    except OSError as error:
        raise InputError(f"{stage.output} cannot be moved to {kept} ({error.strerror}); move it away") from None
    with os_errors_named(kept):
        sync_folder(kept.parent)
        sync_folder(stage.output.parent)
    return f"; the former result is kept in {kept}"


def _holds_anything(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else os.path.lexists(path)


def _listings(stages: Sequence[Stage], work: Path) -> Listings:
    refuse_link(work / STATE_FOLDER)
    return {folder: list_folder(folder, but=work) for stage in stages for folder in stage.inputs.values()}


@contextmanager
def _only_run(work: Path) -> Iterator[None]:
    """Hold WORK's lock. Raises InputError where another run holds it, WORK is no folder, or its disk fails."""
    try:
        (work / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{work} cannot be the work folder ({error.strerror}); give another with --work") from None
    otherwise = f"another `r2o run` works on {work}; wait for it or give another --work"
    with os_errors_named(work), only_holder(work / STATE_FOLDER / "lock", otherwise=otherwise):
        yield
