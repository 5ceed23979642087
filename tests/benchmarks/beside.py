"""A run's speed alone and beside programs that keep cores busy: by threads that spin, and by threads that sleep.

python -m tests.benchmarks.train --only beside

On the CPU alone. OpenMP's threads, when they wait for each other, may spin. Where another program holds one of the
cores, what they wait for comes late, and all the others burn their time. `r2o` therefore has them sleep.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.launchers.local import PASSIVE

BUSY = "while True: pass"
SPINNING = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}  # libgomp's count where threads fit the cores
Train = Callable[[Path, int, dict[str, str]], float]


def beside(scratch: Path, rounds: int, train: Train) -> None:
    """One process with a thread a core, and a process a core with one thread each; alone and beside one busy program.

    Args:
        train: (new folder, processes, environment) → images/s of a whole run.
    """
    cores = num_cores()
    cases: dict[str, tuple[int, dict[str, str]]] = {
        "one process, threads that spin": (1, {"OMP_NUM_THREADS": str(cores), **SPINNING}),
        "one process, threads that sleep": (1, {"OMP_NUM_THREADS": str(cores), **PASSIVE}),
        "a process a core": (cores, {"OMP_NUM_THREADS": "1", **PASSIVE}),
    }
    rates: dict[tuple[str, bool], list[float]] = {}
    for number in range(rounds):
        for name, (processes, environment) in cases.items():
            for is_beside in (False, True):
                run = scratch / f"beside-{name.replace(' ', '-')}-{is_beside}-{number}"
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
