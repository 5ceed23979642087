"""Start a stage as a process of this machine and wait for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.foundation.exit_codes import exit_code_of_signal
from pipeline.foundation.signals import STOP_SIGNALS
from pipeline.stages import Stage


def command_of(stage: Stage) -> list[str]:
    """The stage's argv: a plain process, or ranks where it takes more than one."""
    processes, program = stage.resources.processes, [stage.module, *stage.arguments]
    ranks = ["pipeline.launchers.ranks", str(processes)] if processes > 1 else []
    return [sys.executable, "-m", *ranks, *program]


def environment_of(stage: Stage) -> dict[str, str]:
    """This process's environment, with OMP_NUM_THREADS set to the stage's share of the cores unless it is set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = stage.resources.threads or max(1, cores // stage.resources.processes)
    return {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **os.environ}


def start(stage: Stage) -> int:
    """Run the stage to its end and give its exit code, 128 + n where signal n ended it.

    The stage is a process group of its own, so that Ctrl-C reaches it once, through us, and none of its workers.
    """
    with _signals() as deliver_to:
        process = subprocess.Popen(
            command_of(stage), env=environment_of(stage), stdin=subprocess.DEVNULL, process_group=0
        )
        deliver_to(process)
        code = process.wait()
    return code if code >= 0 else exit_code_of_signal(-code)


@contextmanager
def _signals() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Pass on what arrives to the process that is named later; what came before that is kept for it."""
    receiver: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if receiver:
            receiver[0].send_signal(number)
        else:
            early.append(number)

    def deliver_to(process: subprocess.Popen[bytes]) -> None:
        receiver.append(process)
        for number in early:
            process.send_signal(number)

    former = {s: signal.signal(s, forward) for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield deliver_to
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
