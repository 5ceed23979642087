"""Where the time went, by a clock that the test moves."""

import pytest

from train.run.clock import StepClock


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_time_goes_to_steps_waits_and_what_is_apart() -> None:
    time = Time()
    clock = StepClock(time)

    def batches():
        for seconds in (50.0, 1.0, 2.0):  # the first is the workers' start
            time.now += seconds
            yield seconds

    with clock.apart("panels"):
        time.now += 30  # before the first batch
    reports = []
    for number, _ in enumerate(clock.waiting(batches())):
        time.now += 10
        clock.done(64)
        with clock.apart("log"):
            time.now += 0.5
        if number == 1:
            with clock.apart("checkpoint"):
                time.now += 3
        reports.append(clock.since_last_report(num_ranks=2))
    assert [r["images_per_second"] for r in reports] == pytest.approx([64 / 10.5, 64 / 14.5, 64 / 12.5])
    assert [r["images_per_second_per_device"] for r in reports] == pytest.approx([32 / 10.5, 32 / 14.5, 32 / 12.5])
    assert [r["data_wait"] for r in reports] == pytest.approx([0, 1 / 14.5, 2 / 12.5])
    assert [r["overhead"] for r in reports] == pytest.approx([0.5 / 10.5, 3.5 / 14.5, 0.5 / 12.5])
    assert clock.elapsed == 37.5
    assert clock.data_wait == pytest.approx(3 / 37.5)
    assert clock.images_per_second == pytest.approx(192 / 37.5)
    assert clock.summary() == "steps 80.00%, data_wait 8.00%, log 4.00%, checkpoint 8.00%"


def test_no_batch_yet() -> None:
    clock = StepClock(Time())
    assert (clock.elapsed, clock.images_per_second, clock.data_wait) == (0, 0, 0)
