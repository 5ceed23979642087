"""Seconds by phase."""

from contextlib import suppress

import pytest

from train.evals.frozen import protocol
from train.evals.frozen.protocol import Clock


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(protocol, "perf_counter", lambda: now[0])
    return now


def test_what_a_phase_inside_takes_is_its_own_alone(seconds: list[float]) -> None:
    clock = Clock()
    with clock.phase("rest"):
        seconds[0] += 1
        with clock.phase("count"):
            seconds[0] += 2
            with clock.phase("features"):
                seconds[0] += 4
            seconds[0] += 8
        with clock.phase("features"):
            seconds[0] += 16
        seconds[0] += 32
    assert clock.seconds == {"rest": 33, "count": 10, "features": 20}


def test_a_phase_that_fails_is_counted_too(seconds: list[float]) -> None:
    clock = Clock()
    with clock.phase("rest"):
        with suppress(KeyError), clock.phase("count"):
            seconds[0] += 2
            raise KeyError
        seconds[0] += 1
    assert clock.seconds == {"count": 2, "rest": 1}
