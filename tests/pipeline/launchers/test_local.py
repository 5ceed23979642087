import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.launchers import local
from pipeline.stages import Resources, Stage

PROGRAM = """
import os, signal, sys, time
what, folder = sys.argv[1:]
open(os.path.join(folder, "env"), "w").write(f"{os.environ['OMP_NUM_THREADS']} {os.getpgid(0) == os.getpid()}")
if what.isdigit():
    sys.exit(int(what))
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
count = 0
def told(number, frame):
    global count
    count += 1
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, told)
open(os.path.join(folder, "ready"), "w").close()
end = time.monotonic() + 20
while not count and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(0.5)
sys.exit(40 + count)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "stage_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def stage(folder: Path, what: str, **resources: int) -> Stage:
    return Stage(
        name="x", module="stage_program", arguments=(what, str(folder)), output=folder, marker=folder, inputs={},
        settings={}, resources=Resources(**resources),
    )  # fmt: skip


@pytest.mark.processes
@pytest.mark.parametrize(("what", "code"), [("0", 0), ("3", 3), ("kill", 128 + signal.SIGKILL)])
def test_exit_code_is_the_stages(folder: Path, what: str, code: int) -> None:
    assert local.start(stage(folder, what)) == code


def test_threads_are_the_share_of_the_cores_unless_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    shares = {n: local.environment_of(stage(folder, "0", processes=n))["OMP_NUM_THREADS"] for n in (1, 3, 8, 20)}
    assert shares == {1: "8", 3: "2", 8: "1", 20: "1"}
    assert local.environment_of(stage(folder, "0", threads=1))["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert local.environment_of(stage(folder, "0"))["OMP_NUM_THREADS"] == "5"


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_once_and_its_answer_is_the_exit_code(folder: Path, number: int) -> None:
    def send() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    assert local.start(stage(folder, "wait")) == 41
    sender.join()
    assert signal.getsignal(number) == before
    assert (folder / "env").read_text().split()[1] == "True"  # a terminal's Ctrl-C comes through us alone


def test_more_processes_are_ranks(folder: Path) -> None:
    assert local.command_of(stage(folder, "0")) == [sys.executable, "-m", "stage_program", "0", str(folder)]
    assert local.command_of(stage(folder, "0", processes=4))[1:5] == [
        "-m",
        "pipeline.launchers.ranks",
        "4",
        "stage_program",
    ]


@pytest.mark.processes
def test_a_stage_is_not_started_through_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo_program.py").write_text("import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    odd = ("--a=$(touch pwned) `x` 'y' \"z\" ; *", "\n")
    made = stage(tmp_path, "0")
    made = Stage(**{**vars(made), "module": "echo_program", "arguments": (str(tmp_path / "out"), *odd)})
    assert local.start(made) == 0
    assert (tmp_path / "out").read_text() == repr(list(odd))


@pytest.mark.processes
def test_handlers_are_put_back_when_starting_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FileNotFoundError):
        local.start(stage(tmp_path, "0"))
    assert signal.getsignal(signal.SIGINT) == before
