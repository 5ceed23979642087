"""A run's speed alone and beside a program that keeps a core busy, by processes and their threads.

python -m tests.benchmarks.train --only beside

On the CPU alone. OpenMP's threads wait for each other at the end of each operation. Where another program holds one of
the cores, all wait for the thread that shares it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BUSY = "while True: pass"
NO_SPIN = {"GOMP_SPINCOUNT": "0"}
Train = Callable[[Path, int, dict[str, str]], float]


def beside(scratch: Path, rounds: int, train: Train) -> None:
    """One process with many threads, and a process a core with one thread each; alone and beside one busy program.

    Args:
        train: (new folder, processes, environment) → images/s of a whole run.
    """
    cores = num_cores()
    cases: dict[str, tuple[int, dict[str, str]]] = {
        f"1 process, {cores} threads": (1, {"OMP_NUM_THREADS": str(cores)}),
        f"1 process, {cores} threads that sleep at once": (1, {"OMP_NUM_THREADS": str(cores), **NO_SPIN}),
        "1 process, a core left free": (1, {"OMP_NUM_THREADS": str(max(1, cores - 1))}),
        f"{cores} processes, 1 thread": (cores, {"OMP_NUM_THREADS": "1"}),
    }
    rates: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        for name, (processes, environment) in cases.items():
            for is_beside in (False, True):
                run = scratch / f"beside-{name.replace(' ', '-').replace(',', '')}-{is_beside}-{number}"
                with busy_programs(1 if is_beside else 0):
                    rates.setdefault((name, is_beside), []).append(train(run, processes, environment))
    for name in cases:
        alone, with_other = (statistics.median(rates[name, is_beside]) for is_beside in (False, True))
        print(
            f"{name}: {alone:.1f} images/s alone, {with_other:.1f} beside a busy program; "
            f"train.beside {alone / with_other:.2f} times slower"
        )


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs that never wait, each of one thread."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-c", BUSY])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield
