"""Parts of a day: processes with a time limit, side by side or alone, and what is written of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.gpu.page import page_of
from tests.gpu.places import ROOT
from tests.gpu.summary import Line, failures, read_results, summary_of

GRACE = 10.0  # seconds from SIGTERM to SIGKILL
LAST = 4.0  # seconds kept for the end of the day
POLL = 0.05
TIMED_OUT, KILLED = 124, 137  # as `timeout` says it


@dataclass(frozen=True)
class Part:
    """A program of Python with a time limit.

    arguments: of Python. most: seconds that it may take; in a dry day, all that are left.
    least: seconds under which it is not begun. reads: the shards that it needs. dry: whether a dry day has it.
    gpus: devices without which it is not begun.
    """

    name: str
    arguments: tuple[str, ...]
    most: float
    least: float
    reads: str | None = None
    dry: bool = True
    gpus: int = 0


@dataclass
class Running:
    """A part that has begun, the leader of a process group."""

    part: Part
    process: subprocess.Popen[bytes]
    said: Path
    began: float
    limit: float
    asked: float | None = None  # when it was asked to end

    def has_ended(self, grace: float) -> bool:
        """Whether it has; beyond its limit it is asked to end, and `grace` seconds later it is killed."""
        now = time.monotonic()
        if self.process.poll() is not None:
            return True
        if self.asked is None and now - self.began > self.limit:
            self.asked = now
            self.process.terminate()
        if self.asked is not None and now - self.asked > grace:
            self.end()
        return False

    def end(self) -> None:
        """Kill whatever is left of it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def exit_code(self) -> int:
        """0 also where it ended in good order when it was asked to."""
        code = self.process.returncode
        if self.asked is None or code == 0:
            return code
        return KILLED if code == -signal.SIGKILL else TIMED_OUT


@dataclass
class Day:
    """What has run so far, in how much time, and where it is written.

    Lines of an earlier day in the same folder stay, and count for nothing.
    gpus: devices of this machine.
    """

    out: Path
    shards: Path
    budget: float
    dry: bool = False
    gpus: int = 0
    grace: float = GRACE
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        self.results.touch()
        self._earlier = self.results.stat().st_size
        self._work = tempfile.TemporaryDirectory(prefix="work-", dir=self.out, ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove runs and caches; results and shards stay."""
        self._work.cleanup()

    @property
    def results(self) -> Path:
        return self.out / "results.jsonl"

    def side_by_side(self, parts: Iterable[Part], *, at_once: int = 99, kept: float = 0.0) -> None:
        """Run parts at the same time, or so many of them, each to its end or to its limit.

        kept: seconds of the budget that are not theirs.
        """
        waiting, running = deque(parts), list[Running]()
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    part = waiting.popleft()
                    if (why := self._reason_to_skip(part, kept)) is not None:
                        self._write({"part": part.name, "skipped": why})
                    else:
                        running.append(self._begin(part, kept))
                time.sleep(POLL)
                for one in [one for one in running if one.has_ended(self.grace)]:
                    running.remove(one)
                    self._finish(one)
        finally:
            for one in running:
                one.end()
                self._finish(one)

    def end(self) -> int:
        """Tell what was found, as text and as a page for docs/benchmarks.md; gives the exit code."""
        lines = self.lines()
        text = summary_of(lines)
        (self.out / "summary.txt").write_text(text + "\n")
        (self.out / "benchmarks.md").write_text(page_of(lines))
        print(text, flush=True)
        return 1 if failures(lines) else 0

    def lines(self) -> list[Line]:
        """The results of this day."""
        return read_results(self.results.read_bytes()[self._earlier :].decode())

    def _left(self, kept: float) -> float:
        return self.budget - (time.monotonic() - self.began) - LAST - kept

    def _reason_to_skip(self, part: Part, kept: float) -> str | None:
        if self.gpus < part.gpus:
            return f"{self.gpus} GPU{'' if self.gpus == 1 else 's'}, {part.gpus} needed"
        name = "tiny" if self.dry and part.reads else part.reads
        if name is not None and not (self.shards / name / "manifest.json").exists():
            return f"no shards in {self.shards / name}"
        if (left := self._left(kept)) < part.least:
            return f"{max(left, 0):.0f} s left, {part.least:g} needed"
        return None

    def _begin(self, part: Part, kept: float) -> Running:
        said = self.out / f".{part.name}.log"
        left = self._left(kept)
        limit = left if self.dry else min(part.most, left)
        with said.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *part.arguments],
                cwd=ROOT,
                env=self._environment(part, limit),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(part, process, said, time.monotonic(), limit)

    def _environment(self, part: Part, limit: float) -> dict[str, str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "OMP_NUM_THREADS": "1" if self.dry else "4",
            "TORCHINDUCTOR_CACHE_DIR": f"{self._work.name}/inductor",
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONUNBUFFERED": "1",
            "R2O_CACHE": f"{self._work.name}/marks",
            "OUT": str(self.out),
            "GPU_DAY_WORK": self._work.name,
            "SHARDS": str(self.shards),
            "DRY": "1" if self.dry else "",
            "GPU_DAY_PART": part.name,
            "GPU_DAY_UNTIL": str(time.monotonic() + limit),
        }

    def _finish(self, one: Running) -> None:
        """Take in what a part has said and how it ended; leave no process of it behind."""
        one.end()
        now = time.monotonic()
        code, seconds = one.exit_code(), round(now - one.began, 1)
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"=== {one.part.name} (exit {code}, {seconds} s)\n".encode() + one.said.read_bytes())
        one.said.unlink()
        line: Line = {"part": one.part.name, "exit": code, "seconds": seconds, "at": round(now - self.began, 1)}
        if one.asked is not None:
            line["limit"] = round(one.limit, 1)
        self._write(line)

    def _write(self, line: Line) -> None:
        text = json.dumps(line)
        with self.results.open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)
