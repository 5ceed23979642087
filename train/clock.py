"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """Where the time of the steps goes: images per second, and the share that the device waited for data."""

    def __init__(self) -> None:
        self._begin = self._report = time.perf_counter()
        self._waited = self._waited_at_report = 0.0
        self._steps = self._steps_at_report = 0

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from `batches`, timing how long each took to arrive."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if self._steps == 0:
                self._begin = self._report = time.perf_counter()  # the workers' start is not a step's wait
            else:
                self._waited += time.perf_counter() - asked
            yield batch
            self._steps += 1

    @property
    def data_wait(self) -> float:
        """Share of the time since the first batch, in [0, 1]."""
        return self._waited / max(time.perf_counter() - self._begin, 1e-9)

    def images_per_second(self, global_batch_size: int) -> float:
        """Over all ranks, since the first batch."""
        return (self._steps + 1) * global_batch_size / max(time.perf_counter() - self._begin, 1e-9)

    def since_last_report(self, global_batch_size: int) -> dict[str, float]:
        """`images_per_second` and `data_wait` since this was last asked."""
        now, steps = time.perf_counter(), self._steps + 1
        elapsed = max(now - self._report, 1e-9)
        figures = {
            "images_per_second": (steps - self._steps_at_report) * global_batch_size / elapsed,
            "data_wait": (self._waited - self._waited_at_report) / elapsed,
        }
        self._report, self._steps_at_report, self._waited_at_report = now, steps, self._waited
        return figures
