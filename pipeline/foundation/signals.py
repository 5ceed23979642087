"""The signals by which a scheduler, a terminal or a person asks a process to end in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignal(BaseException):
    """A stop signal came. As KeyboardInterrupt it is no Exception, so that nothing takes it for a fault and goes on."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.name = signal.Signals(number).name


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """Let stop signals raise StopSignal, but Ctrl-C KeyboardInterrupt; what the parent ignores stays ignored."""
    asked = [s for s in STOP_SIGNALS if s != signal.SIGINT and signal.getsignal(s) != signal.SIG_IGN]
    former = {number: signal.signal(number, _raise) for number in asked}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def same_handlers() -> Iterator[None]:
    """After the block the handlers of stop signals are those of before, whatever it installed."""
    former = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise StopSignal(number)
