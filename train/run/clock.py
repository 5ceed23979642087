"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Mark(Protocol):
    """A moment in a device's time, such as a torch.cuda.Event with timing."""

    def query(self) -> bool:
        """Whether the device has passed it."""

    def elapsed_time(self, other: Any, /) -> float:
        """Milliseconds from here to `other`, which may be negative; both are passed."""


def _no_mark(*_: object) -> Mark | None:
    return None


class StepClock:
    """Where the time since the first batch goes: to steps, to waiting for data, to what is done apart from both.

    A GPU works after the host has gone on, so that the host's wait for a batch says nothing of it. There, a wait is the
    time from the end of all that was queued before the batch was asked for to the moment at which the batch was ready.

    Args:
        now: seconds, of any origin.
        mark: the end of what is queued on the device so far; None where the host itself computes.
    """

    def __init__(
        self, now: Callable[[], float] = time.perf_counter, mark: Callable[[], Mark | None] = _no_mark
    ) -> None:
        self._now, self._mark = now, mark
        self._begin: float | None = None
        self._host_waited = 0.0
        self._device_waits = _DeviceWaits()
        self._apart: defaultdict[str, float] = defaultdict(float)
        self._images = 0
        self._reported = (0.0, 0.0, 0.0, 0)

    def waiting(self, batches: Iterator[T], ready: Callable[[T], Mark | None] = _no_mark) -> Iterator[T]:
        """Yield from `batches`, timing how long each took to arrive, but the first: the workers' start is no wait.

        Args:
            ready: when a batch is on the device; None where the host's time tells.
        """
        while True:
            asked, idle_from = self._now(), self._mark()
            batch = next(batches, None)
            if batch is None:
                return
            if self._begin is None:
                self._begin = self._now()
                self._apart.clear()
            elif idle_from is not None and (came := ready(batch)) is not None:
                self._device_waits.add(idle_from, came)
            else:
                self._host_waited += self._now() - asked
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
    def _waited(self) -> float:
        return self._host_waited + self._device_waits.seconds()

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


class _DeviceWaits:
    """Seconds for which a device had nothing to do because a batch was not there. The host never waits to know them."""

    def __init__(self) -> None:
        self._known = 0.0
        self._open: deque[tuple[Mark, Mark]] = deque()

    def add(self, idle_from: Mark, ready: Mark) -> None:
        """A wait that is known once the device has passed both."""
        self._open.append((idle_from, ready))

    def seconds(self) -> float:
        """Of all waits that are known by now."""
        while self._open and all(mark.query() for mark in self._open[0]):
            idle_from, ready = self._open.popleft()
            self._known += max(0.0, idle_from.elapsed_time(ready)) / 1000
        return self._known
