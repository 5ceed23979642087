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


class Machine:
    """A host, a device and a loader in one time, in ms, whose events tell what the device did when."""

    def __init__(self, *, host: float, step: float, period: float, blocks: float = 0.0, copy: float = 2.0) -> None:
        self.host, self.step, self.period, self.blocks, self.copy = host, step, period, blocks, copy
        self.now, self.free = 0.0, 0.0

    def seconds(self) -> float:
        return self.now / 1000

    def end_of_queue(self) -> "Event":
        return Event(self, max(self.now, self.free))

    def batches(self, count: int):
        for number in range(count):
            self.now = max(self.now, self.period * (number + 1)) + (self.blocks if number else 0)
            yield Event(self, self.now - self.blocks + self.copy if number else self.now)

    def run(self, count: int) -> StepClock:
        clock = StepClock(self.seconds, self.end_of_queue)
        for ready in clock.waiting(self.batches(count), lambda event: event):
            self.free = max(self.now, self.free, ready.at) + self.step
            self.now += self.host
        return clock


class Event:
    def __init__(self, machine: Machine, at: float) -> None:
        self.machine, self.at = machine, at

    def query(self) -> bool:
        return self.machine.now >= self.at

    def elapsed_time(self, other: "Event") -> float:
        assert max(self.at, other.at) <= self.machine.now, "an event that is not over has no time"
        return other.at - self.at


def test_a_device_that_waits_for_a_slow_loader_waits_for_what_its_steps_leave() -> None:
    """A batch every 50 ms and 2 ms to copy it, steps of 10 ms: 40 of 50 ms, and 42 after the first, which is there."""
    machine = Machine(host=1, step=10, period=50)
    clock = machine.run(11)
    machine.now += 1  # the copy of the last batch is over
    assert machine.now == 552
    assert clock.data_wait == pytest.approx((42 + 9 * 40) / (552 - 50))
    assert clock.seconds()["steps"] == pytest.approx(0.502 - 0.402)


def test_a_device_that_is_behind_its_host_waits_for_nothing_however_long_the_host_does() -> None:
    """Steps of 100 ms, batches every 5; the host is held up for 60 ms in every `next`, and is ahead all the same."""
    machine = Machine(host=1, step=100, period=5, blocks=60)
    clock = machine.run(11)
    machine.now = machine.free
    assert machine.now == 5 + 11 * 100
    assert clock.data_wait == 0
    by_host = StepClock(machine.seconds)
    machine.now = 0
    for _ in by_host.waiting(machine.batches(11)):
        machine.now += 1
    assert by_host.data_wait > 0.9  # what the host's time would tell


def test_a_wait_counts_once_the_device_has_passed_it() -> None:
    machine = Machine(host=0, step=10, period=50, copy=7)
    clock = machine.run(2)
    assert (machine.now, clock.data_wait) == (100, 0)  # the copy of the second batch ends at 107
    assert clock.since_last_report(num_ranks=1)["data_wait"] == 0
    machine.now = 110
    assert clock.data_wait == pytest.approx(47 / 60)
    assert clock.since_last_report(num_ranks=1)["data_wait"] == pytest.approx(47 / 10)
    assert clock.data_wait == pytest.approx(47 / 60)  # once
