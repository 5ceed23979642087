"""Ending a run in good order when a scheduler, or Ctrl-C, asks for it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.foundation.exit_codes import EXIT_INTERRUPTED, EXIT_REQUEUE
from pipeline.foundation.signals import STOP_SIGNALS


class StoppedError(BaseException):  # a handler raises it anywhere, where no `except Exception` may take it for a fault
    """A signal came before there was a step whose end is worth waiting for."""


class StopRequest:
    """The signal that asked this process to end after the step that it is in; None so far.

    Attributes:
        in_steps: set this when steps begin; before, a signal raises StoppedError at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.in_steps = False

    def take(self, number: int, frame: FrameType | None) -> None:
        """Signal handler. A second Ctrl-C does not wait for the step."""
        if number == signal.SIGINT and (self.signal is signal.SIGINT or not self.in_steps):
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)
        if not self.in_steps:
            raise StoppedError


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGUSR1, SIGHUP and Ctrl-C instead of ending of them; what the parent ignores stays ignored."""
    request = StopRequest()
    former = {s: signal.signal(s, request.take) for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def exit_code_after(name: str) -> int:
    """What a process says to whoever started it, after a signal of this name: that it can be started again."""
    return EXIT_INTERRUPTED if name == signal.SIGINT.name else EXIT_REQUEUE
