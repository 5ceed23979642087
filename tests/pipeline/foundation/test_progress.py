import io

import pytest

from pipeline.foundation import progress
from pipeline.foundation.progress import Progress, format_seconds


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def test_rate_and_eta_count_from_where_it_was_resumed(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("shards", 100, "images", done=40, interval=5, out=out)
    clock.now += 10
    bar.advance(20, "bad 1")
    assert bar.rate == 2.0
    assert out.getvalue() == "shards: 60/100 images  2/s  ETA 20s  bad 1\n"


def test_reports_at_most_every_interval_and_always_at_the_end(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("x", 4, "steps", interval=3, out=out)
    for _ in range(4):
        clock.now += 1
        bar.advance(1)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["3/4", "4/4"]


def test_what_ends_at_once_can_be_silent(clock: Clock) -> None:
    out = io.StringIO()
    short, long = (Progress("x", 4, "steps", interval=3, short_is_silent=True, out=out) for _ in range(2))
    short.advance(4)
    assert out.getvalue() == ""
    for _ in range(4):
        clock.now += 1
        long.advance(1)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["3/4", "4/4"]


def test_a_terminal_line_is_redrawn(clock: Clock) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    bar = Progress("x", 2, "steps", out=out)
    for _ in range(2):
        clock.now += 1
        bar.advance(1)
    assert out.getvalue() == "\r\x1b[Kx: 1/2 steps  1/s  ETA 1s\r\x1b[Kx: 2/2 steps  1/s  ETA 0s\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (200, "3m20s"), (7500, "2h05m"), (356400, "4d03h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_what_a_file_says_stays_on_one_line_and_moves_no_cursor() -> None:
    out = io.StringIO()
    progress.say("a\x1b]0;owned\x07\nr2o: error: forged\r\u2028\udcff é", out=out)
    assert out.getvalue() == "a\\x1b]0;owned\\x07\\nr2o: error: forged\\r\\u2028\\udcff é\n"
