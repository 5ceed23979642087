"""Ranks that are lost: killed, stopped, ended by a mistake. The others say which, and end, whatever they wait for."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

from pipeline.foundation.errors import InputError
from pipeline.foundation.exit_codes import EXIT_FAILED, EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_REQUEUE
from train.distributed import watch as watch_module
from train.distributed import world as world_module
from train.distributed.watch import Loss, RankWatch
from train.run.stopping import StoppedError

ADDRESS = ("127.0.0.1", 1)
LONG = 600.0  # seconds


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[RankWatch]]]:
    """Watches of some ranks in this process, and the codes with which they would have left it."""
    monkeypatch.setattr(watch_module, "BEAT", 0.05)
    monkeypatch.setattr(watch_module, "GRACE", 0.2)
    made: list[RankWatch] = []

    def start(count: int, seconds: float = LONG, *, greeted: bool = True) -> list[RankWatch]:
        store = dist.HashStore()
        for rank in range(count):
            leave = codes.setdefault(rank, []).append
            made.append(RankWatch(rank, count, store, address=ADDRESS, seconds=seconds, leave=leave))
        if greeted:
            until(lambda: {line.rank for line in made[0]._others()} == set(range(1, count)))
        return made

    codes: dict[int, list[int]] = {}
    start.codes = codes  # type: ignore[attr-defined]
    yield start
    for watch in made:
        watch.close()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ranks_that_work_for_long_are_not_lost(ranks: Callable[..., list[RankWatch]]) -> None:
    watches = ranks(3, seconds=0.5)
    time.sleep(1.5)  # three times the limit
    assert [watch.loss(within=0) for watch in watches] == [None] * 3
    assert [watch.silence() for watch in watches] == [None] * 3


def test_the_reason_of_one_is_told_to_all_others_who_leave_with_its_code(
    ranks: Callable[..., list[RankWatch]], capsys: pytest.CaptureFixture[str]
) -> None:
    watches = ranks(3)
    watches[1].close(Loss(EXIT_INPUT_ERROR, "shard 7 is damaged"))
    expected = Loss(EXIT_INPUT_ERROR, "rank 1 ended: shard 7 is damaged")
    assert [watches[rank].loss(within=30) for rank in (0, 2)] == [expected] * 2
    until(lambda: ranks.codes[0] and ranks.codes[2])  # type: ignore[attr-defined]
    assert ranks.codes == {0: [EXIT_INPUT_ERROR], 1: [], 2: [EXIT_INPUT_ERROR]}  # type: ignore[attr-defined]
    said = {f"r2o: rank {rank} lost the others: rank 1 ended: shard 7 is damaged" for rank in (0, 2)}
    assert set(capsys.readouterr().err.splitlines()) == said


def test_the_first_rank_tells_its_reason_too(ranks: Callable[..., list[RankWatch]]) -> None:
    watches = ranks(3)
    watches[0].close(Loss(EXIT_FAILED, "x" * 100_000))
    assert [watches[rank].loss(within=30) for rank in (1, 2)] == [
        Loss(EXIT_FAILED, "rank 0 ended: " + "x" * (watch_module.LONGEST // 8))
    ] * 2


def test_last_words_are_heard_though_much_is_unread(ranks: Callable[..., list[RankWatch]]) -> None:
    watches = ranks(3)
    for watch in watches[1:]:
        for line in watch._others():
            for _ in range(1000):
                line.send("beat")
    watches[0].close(Loss(EXIT_INPUT_ERROR, "a reason"))
    expected = Loss(EXIT_INPUT_ERROR, "rank 0 ended: a reason")
    assert [watches[rank].loss(within=30) for rank in (1, 2)] == [expected] * 2


def test_who_ends_by_itself_in_time_is_not_ended(
    ranks: Callable[..., list[RankWatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "GRACE", 0.5)
    watches = ranks(2)
    watches[1].close(Loss(EXIT_FAILED, "a fault"))
    assert watches[0].loss(within=30)
    watches[0].close()
    time.sleep(0.8)
    assert ranks.codes[0] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", [0, 1])
def test_ranks_that_end_in_good_order_lose_nobody(ranks: Callable[..., list[RankWatch]], first: int) -> None:
    watches = ranks(3)
    watches[first].close()
    time.sleep(0.3)
    assert [watch.loss(within=0) for watch in watches] == [None] * 3


def test_what_is_no_rank_of_this_start_is_not_listened_to(ranks: Callable[..., list[RankWatch]]) -> None:
    watches = ranks(2)
    port = watches[0]._server.getsockname()[1]
    ends = json.dumps(["ends", 2, "no"]).encode()
    for said in (b"\0\xff\n", b"[]\n", b"7\n", ends + b"\n", b'["hello", "guess", 1]\n' + ends + b"\n", b"x" * 40_000):
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(said)
    time.sleep(0.3)
    assert [watch.loss(within=0) for watch in watches] == [None] * 2
    watches[1].close(Loss(1, "yes"))
    assert watches[0].loss(within=30) == Loss(1, "rank 1 ended: yes")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("TIMEOUT", "a collective took longer than 10 minutes, so one of them hangs"),
        ("COMM_ERROR", "a collective failed, and NCCL's own message says why (COMM_ERROR)"),
    ],
)
def test_an_error_that_nccl_has_noted_ends_the_ranks_before_it_aborts_them(
    ranks: Callable[..., list[RankWatch]], monkeypatch: pytest.MonkeyPatch, error: str, text: str
) -> None:
    backend = type("Backend", (), {"get_error": lambda self: noted[0]})()
    noted = [ErrorType.SUCCESS]
    group = type("Group", (), {"_get_backend": lambda self, device: backend})()
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_group", lambda: group)
    watches = ranks(2)
    watches[1].look_at(world_module._fault_of(world_module.torch.device("cuda", 0), 10.0))
    time.sleep(0.2)
    assert watches[1].loss(within=0) is None
    noted[0] = ErrorType.__members__[error]
    assert watches[1].loss(within=30) == Loss(EXIT_FAILED, text)
    until(lambda: ranks.codes[1] == [EXIT_FAILED])  # type: ignore[attr-defined]


def test_gloo_is_not_asked() -> None:
    assert world_module._fault_of(world_module.torch.device("cpu"), 10.0)() is None


def start(count: int, minutes: float, deed: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    fixed = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.train.distributed.watch_program", str(minutes), deed]
    return [
        subprocess.Popen(command, env={**os.environ, **fixed, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]


def ends(process: subprocess.Popen[str], code: int) -> list[str]:
    """What a rank said, without torch's own lines."""
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    return [line for line in said.splitlines() if line.startswith("r2o:")]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("deed", "actor", "minutes", "code", "text"),
    [
        ("dies", 1, 10, EXIT_FAILED, "rank 1 has died, and its own message says why"),
        ("dies of the first", 0, 10, EXIT_FAILED, "rank 0 has died, and its own message says why"),
        ("mistake", 1, 10, EXIT_INPUT_ERROR, "rank 1 ended: shard 7 is damaged"),
        ("stops", 1, 0.1, EXIT_FAILED, "rank 1 hangs, or its node cannot be reached: no sign of life for 0.1 minutes"),
        ("stops of the first", 0, 0.1, EXIT_FAILED,
         "rank 0 hangs, or its node cannot be reached: no sign of life for 0.1 minutes"),
    ],
)  # fmt: skip
def test_a_rank_that_waits_without_end_says_who_was_lost(
    deed: str, actor: int, minutes: float, code: int, text: str
) -> None:
    processes = start(2, minutes, deed)
    try:
        assert ends(processes[1 - actor], code) == [f"r2o: rank {1 - actor} lost the others: {text}"]
        if deed == "mistake":
            assert ends(processes[actor], EXIT_INPUT_ERROR) == ["r2o: error: shard 7 is damaged"]
        assert (processes[actor].poll() is None) == deed.startswith("stops")
    finally:
        for process in processes:
            process.kill()
            process.communicate()


class TellTale:
    """In place of a watch."""

    def __init__(self, found: Loss | None = None) -> None:
        self.found, self.told = found, None

    def loss(self, *, within: float) -> Loss | None:
        return self.found

    def silence(self) -> str | None:
        return None if self.found else "rank 2 has given no sign of life for 7 s"

    def close(self, loss: Loss | None = None) -> None:
        self.told = loss


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("shard 7 is damaged"), Loss(EXIT_INPUT_ERROR, "shard 7 is damaged")),
        (TypeError("a fault\nin two lines"), Loss(EXIT_FAILED, "TypeError: a fault")),
        (RuntimeError("CUDA error: x"), Loss(EXIT_FAILED, "RuntimeError: CUDA error: x")),
        (KeyboardInterrupt(), Loss(EXIT_INTERRUPTED, "it was interrupted")),
        (StoppedError(), Loss(EXIT_REQUEUE, "it was asked to stop")),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_what_a_rank_tells_of_its_end(error: BaseException, told: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    ended_with: list[tuple[object, ...]] = []
    monkeypatch.setattr(world_module.atexit, "register", lambda *call: ended_with.append(call))
    watch = TellTale()
    assert world_module._told(error, watch, 1) is error  # type: ignore[arg-type]
    assert watch.told == told
    assert ended_with == [(watch_module.leave_now, told.code)]


def test_a_failed_collective_is_told_with_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module.atexit, "register", lambda *call: None)
    failed = RuntimeError("[../gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1: gloo. More")
    cause = "(Connection closed by peer [127.0.0.1]:1: gloo)"
    told = world_module._told(failed, TellTale(Loss(2, "rank 1 ended: x")), 0)  # type: ignore[arg-type]
    assert (str(told), told.code) == (f"rank 0 lost the others: rank 1 ended: x {cause}", 2)  # type: ignore[attr-defined]
    watch = TellTale()
    told = world_module._told(failed, watch, 0)  # type: ignore[arg-type]
    assert str(told) == f"rank 0 lost the others: rank 2 has given no sign of life for 7 s {cause}"
    assert watch.told == Loss(EXIT_FAILED, "a collective failed there")


@pytest.mark.processes
def test_a_collective_that_fails_names_the_dead_rank_and_nothing_hangs() -> None:
    processes = start(2, LONG / 60, "collective")
    (line,) = ends(processes[0], EXIT_FAILED)
    assert line.startswith("r2o: rank 0 lost the others: rank 1 has died, and its own message says why (")
    assert ends(processes[1], -signal.SIGKILL) == []


@pytest.mark.processes
def test_slow_ranks_are_left_alone_and_what_does_not_end_is_ended() -> None:
    for process in start(2, 0.03, "slow"):  # 1.8 s, of 4
        assert ends(process, 0) == []
    for rank, process in enumerate(start(2, LONG / 60, "does not end")):
        (line,) = ends(process, EXIT_FAILED)
        assert line == f"r2o: rank {rank}: all is done, but the process group did not end within 1 s"
