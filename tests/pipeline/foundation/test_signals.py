from __future__ import annotations

import os
import signal

import pytest

from pipeline.foundation.errors import exit_code_of
from pipeline.foundation.signals import StopSignal, same_handlers, stop_signals_raise


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_stop_signal_is_one_line_and_asks_to_be_started_again(number, capsys):
    def main() -> int:
        try:
            os.kill(os.getpid(), number)
        except Exception:
            return 1  # a fault that is handled would go on
        return 0

    before = signal.getsignal(number)
    with stop_signals_raise():
        assert exit_code_of(main) == 75
    assert signal.getsignal(number) == before
    said = f"r2o: {number.name}: stopped; run the same command again to go on\n"
    assert capsys.readouterr().err == said


def test_what_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals_raise():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_that_a_library_installs_do_not_stay():
    with stop_signals_raise():
        with same_handlers():
            signal.signal(signal.SIGTERM, lambda number, frame: None)
        with pytest.raises(StopSignal, match="15"):
            os.kill(os.getpid(), signal.SIGTERM)
