"""One line of progress: how many, how fast, how long still."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TextIO


class Progress:
    """Prints `label: done/total unit  rate  ETA  extra`, at most every `interval` seconds.

    On a terminal the line is redrawn in place, elsewhere each report is a line of its own. The end is always reported,
    unless `short_is_silent`: then what ends within one interval says nothing.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        interval: float | None = None,
        short_is_silent: bool = False,
        out: TextIO | None = None,
    ) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self._out = out or sys.stderr
        self._interactive = self._out.isatty()
        self._interval = interval if interval is not None else (0.5 if self._interactive else 10.0)
        self._start, self._start_done = time.monotonic(), done
        self._last_report = self._start
        self._silent = short_is_silent

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._start_done) / max(time.monotonic() - self._start, 1e-9)

    @property
    def eta(self) -> float | None:
        """Seconds until the end at that rate; None before anything is done."""
        return (self.total - self.done) / self.rate if self.rate else None

    def advance(self, count: int, extra: str = "") -> None:
        """Count `count` more as done; report if it is time to, and always at the end."""
        self.done += count
        now = time.monotonic()
        is_end = self.done >= self.total and not self._silent
        if is_end or now - self._last_report >= self._interval:
            self._last_report, self._silent = now, False
            self._write(extra)

    def _write(self, extra: str) -> None:
        eta = "?" if self.eta is None else format_seconds(self.eta)
        line = f"{self.label}: {self.done}/{self.total} {self.unit}  {self.rate:.3g}/s  ETA {eta}  {extra}".rstrip()
        end = "\n" if not self._interactive or self.done >= self.total else ""
        say(line, start="\r\x1b[K" if self._interactive else "", end=end, out=self._out)


def say(text: str, *, start: str = "", end: str = "\n", out: TextIO | None = None) -> None:
    """Print one line to stderr; where nobody can hear it, a closed pipe or a full disk, it is not said."""
    with suppress(OSError, ValueError):
        print(f"{start}{one_line(text)}", end=end, file=out or sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Text that may hold what a file says, as any terminal can print it: control characters are shown escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def format_seconds(seconds: float) -> str:
    """A duration as people read it: 8s, 3m20s, 2h05m, 4d03h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
