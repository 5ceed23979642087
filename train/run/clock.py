"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepClock:
    """Where the time since the first batch goes: to steps, to waiting for data, to what is done apart from both.

    Args:
        now: seconds, of any origin.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._begin: float | None = None
        self._waited = 0.0
        self._apart: defaultdict[str, float] = defaultdict(float)
        self._images = 0
        self._reported = (0.0, 0.0, 0.0, 0)

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield from `batches`, timing how long each took to arrive, but the first: the workers' start is no wait."""
        while True:
            asked = self._now()
            batch = next(batches, None)
            if batch is None:
                return
            if self._begin is None:
                self._begin = self._now()
                self._apart.clear()
            else:
                self._waited += self._now() - asked
            yield batch

    @contextmanager
    def apart(self, name: str) -> Iterator[None]:
        """Count the block's time under `name`: it is no step's."""
        began = self._now()
        try:
            yield
        finally:
            self._apart[name] += self._now() - began

    def done(self, images: int) -> None:
        """A step of so many images, of all ranks, is done."""
        self._images += images

    @property
    def elapsed(self) -> float:
        """Seconds since the first batch came."""
        return 0.0 if self._begin is None else self._now() - self._begin

    @property
    def data_wait(self) -> float:
        """Share of the time since the first batch, in [0, 1]."""
        return self._waited / max(self.elapsed, 1e-9)

    @property
    def images_per_second(self) -> float:
        """Over all ranks, since the first batch."""
        return self._images / max(self.elapsed, 1e-9)

    def since_last_report(self, *, num_ranks: int) -> dict[str, float]:
        """Speed and shares of the time since this was last asked; `overhead` is what was done apart."""
        now = (self.elapsed, self._waited, sum(self._apart.values()), self._images)
        elapsed, waited, apart, images = (new - old for new, old in zip(now, self._reported, strict=True))
        self._reported = now
        rate = images / max(elapsed, 1e-9)
        return {
            "images_per_second": rate,
            "images_per_second_per_device": rate / num_ranks,
            "data_wait": waited / max(elapsed, 1e-9),
            "overhead": apart / max(elapsed, 1e-9),
        }

    def seconds(self) -> dict[str, float]:
        """All the time since the first batch by what it went to."""
        parts = {"data_wait": self._waited, **self._apart}
        return {"steps": self.elapsed - sum(parts.values()), **parts}

    def summary(self) -> str:
        """Shares of all the time since the first batch, as a line."""
        parts = self.seconds()
        total = max(sum(parts.values()), 1e-9)
        return ", ".join(f"{name} {seconds / total:.2%}" for name, seconds in parts.items())
