"""A checkout that is looked at: what its commands say and leave, without places and times."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

TIMEOUT = 600.0  # seconds, of one child
TEXTS = {".json", ".jsonl", ".yaml", ".md", ".txt"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")  # of our environment; all else is set here
PROGRESS = re.compile(r"^.*: \d+/\d+ \w+  .*ETA .*\n?|^pretrain: where the time went.*\n?", re.MULTILINE)
FIGURES = (
    r"images_per_second\w*|data_wait|overhead|memory_gb|eta_seconds|seconds(?:_\w+)?|saves|time|git_commit"  # of JSON
)
TIMES = (
    (re.compile(rf'"({FIGURES})": [^,}}\n]+'), r'"\1": *'),
    (re.compile(r"\b[0-9a-f]{40}\b"), "<commit>"),
    (re.compile(r"\b(\d+d)?(\d+h)?(\d+m)?\d+s, [\d.e-]+ core-hours"), "<time>"),
    (re.compile(r"[\d.e-]+ (core-hours|images/s)"), r"<figure> \1"),
    (re.compile(r": done in \S+"), ": done in <time>"),
)
TAG = re.compile(rb"(?:collapse|masks|speed|probe|time|train)/[a-z0-9_]+")
EVENTS = re.compile(r"events\.out\.tfevents\.\S+")


class BrokenError(Exception):
    """A row could not be measured, so it shows nothing."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command has said, and its exit code."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A checkout and its own folder for results.

    Attributes:
        inputs: what both checkouts are given; see `inputs.write_inputs`.
        names: what stands in texts for places, by place.
    """

    root: Path
    work: Path
    inputs: Path
    names: Mapping[str, str]

    @property
    def python(self) -> Path:
        """Its own interpreter where it has one, else ours."""
        return interpreter_of(self.root)

    @property
    def recipe(self) -> Path:
        """The small recipe that both are given."""
        return self.inputs / "small.yaml"

    @property
    def small(self) -> Path:
        """Where the row `run` leaves its results."""
        return self.work / "small"

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """A child: this checkout's interpreter with these arguments."""
        home = self.work / "home"
        home.mkdir(parents=True, exist_ok=True)
        environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
            "HOME": str(home),
            "R2O_CACHE": str(self.work / "cache"),
            "PYTHONPATH": str(self.root),
            "PYTHONUTF8": "1",
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.Popen(
            [str(self.python), *map(str, arguments)], cwd=self.root, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: object) -> Done:
        """The same to its end."""
        return finish(self.start(*arguments))

    def module(self, name: str, *arguments: object) -> Done:
        """Run a module that has to succeed. Raises BrokenError."""
        return succeeded(self.run("-m", name, *arguments))

    def r2o(self, *arguments: object) -> Done:
        """Run a verb that has to succeed. Raises BrokenError."""
        return self.module("pipeline.cli", *arguments)

    def text(self, said: str, *, timed: bool = True) -> str:
        """A text with names for places. Where it is `timed`, without times and speeds too."""
        for place in sorted(self.names, key=len, reverse=True):
            said = said.replace(place, self.names[place])
        said = PROGRESS.sub("", said)
        for pattern, name in TIMES if timed else ():
            said = pattern.sub(name, said)
        return said

    def told(self, done: Done, *, timed: bool = True) -> str:
        """All that a command has said, as one text."""
        return self.text(f"exit code {done.code}\n{done.out}--- stderr\n{done.err}", timed=timed)

    def tree(self, folder: Path, *, without: str = "") -> dict[str, str]:
        """All files below a folder by name: texts without times, else their SHA-256.

        TensorBoard's events hold times, so only the names of their figures count. Names that match `without` are
        left out.
        """
        found = {}
        for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
            name = EVENTS.sub("events", path.relative_to(folder).as_posix())
            if without and re.search(without, name):
                continue
            if path.name.startswith("events."):
                found[name] = "\n".join(sorted({tag.decode() for tag in TAG.findall(path.read_bytes())}))
            elif path.suffix in TEXTS:
                found[name] = self.text(path.read_text(encoding="utf-8"))
            else:
                found[name] = f"sha256 {hashlib.sha256(content_of(path)).hexdigest()}"
        if not found:
            raise BrokenError(f"{folder} holds no files")
        return found


def content_of(path: Path) -> bytes:
    """A file's bytes. The header of safetensors, which is in another order each time, is put in order."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def interpreter_of(root: Path) -> Path:
    """A checkout's own interpreter where it has one, else ours."""
    own = root / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def finish(process: subprocess.Popen[str]) -> Done:
    """Wait for a child. Raises BrokenError where that takes too long."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        end(process)
        raise BrokenError(f"{command_of(process)}: not over after {TIMEOUT:.0f} s") from None
    return Done(code=process.returncode, out=out, err=err)


def succeeded(done: Done) -> Done:
    """The same. Raises BrokenError where the exit code is not 0."""
    if done.code:
        raise BrokenError(f"exit code {done.code}: {done.err.strip()[-300:]}")
    return done


def stop_when(
    process: subprocess.Popen[str], number: signal.Signals, happens: Callable[[], bool], *, code: int
) -> None:
    """Send a child a signal as soon as something happens. Raises BrokenError where it ends otherwise."""
    deadline = time.monotonic() + TIMEOUT
    while process.poll() is None and not happens():
        if time.monotonic() > deadline:
            end(process)
            raise BrokenError(f"{command_of(process)}: what was waited for did not happen")
        time.sleep(0.002)
    process.send_signal(number)
    done = finish(process)
    if done.code != code:
        raise BrokenError(f"{command_of(process)}: exit code {done.code} after {number.name}, not {code}: {done.err}")


def end(process: subprocess.Popen[str]) -> None:
    """Kill a child with all that it has started."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    process.communicate()


def command_of(process: subprocess.Popen[str]) -> str:
    """A child's arguments as one text."""
    return " ".join(map(str, process.args)) if isinstance(process.args, list) else str(process.args)
