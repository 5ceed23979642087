"""A run's speed alone and beside a program that keeps a core busy, by how long threads spin before they sleep.

python -m tests.benchmarks.train --only beside

On the CPU alone. OpenMP's threads spin while they wait for each other. Where another program holds one of the cores,
what they wait for comes late, and they burn their own. Sleeping costs a wake-up for each small operation.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipeline.launchers.local import BRIEF_SPIN

BUSY = "while True: pass"
WAITS = {
    "long spin": {"GOMP_SPINCOUNT": "300000"},
    "brief spin": BRIEF_SPIN,
    "no spin": {"GOMP_SPINCOUNT": "0"},
}
Train = Callable[[Path, int, dict[str, str]], float]


def beside(scratch: Path, rounds: int, train: Train) -> None:
    """One process with a thread a core, and a process a core with one thread each; alone and beside one busy program.

    Args:
        train: (new folder, processes, environment) → images/s of a whole run.
    """
    cores = num_cores()
    cases = {
        f"{processes} of {threads} threads, {wait}": (processes, {"OMP_NUM_THREADS": str(threads), **environment})
        for processes, threads in ((1, cores), (cores, 1))
        for wait, environment in WAITS.items()
        if processes == 1 or wait == "brief spin"
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
