import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.launchers.local import command_of
from pipeline.stages import Resources, Stage

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[3]
RANK = """
import os, signal, sys, time
rank, what, folder, _ = int(os.environ["RANK"]), *sys.argv[1:]
if what == "ok":
    sys.stdout.write(f"rank {rank} of {os.environ['WORLD_SIZE']}\\n")  # in one piece, also where output is unbuffered
    sys.stdout.flush()
    sys.exit(0)
if rank == 1 and what == "input":
    print("r2o: error: x.yaml: no such file", file=sys.stderr)
    sys.exit(2)
if rank == 1 and what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if rank == 1 and what == "crash":
    raise RuntimeError("boom")
if what == "save":  # in good order, the first rank later than the others
    def save(number, frame):
        time.sleep(1.0 if rank == 0 else 0.0)
        open(os.path.join(folder, f"saved{rank}-{signal.Signals(number).name}"), "w").close()
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGUSR1, save)
open(os.path.join(folder, f"ready{rank}"), "w").close()
time.sleep(60)
"""


def launched(folder: Path, what: str) -> subprocess.Popen[str]:
    (folder / "rank_stub.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    resources = Resources(processes=2)
    stage = Stage(
        name="x", module="rank_stub", arguments=(what, str(folder), "--run=x"), output=folder, marker=folder,
        inputs={}, settings={}, resources=resources,
    )  # fmt: skip
    return subprocess.Popen(
        command_of(stage), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ranks_run(tmp_path: Path) -> None:
    process = launched(tmp_path, "ok")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, sorted(out.splitlines()), err) == (0, ["rank 0 of 2", "rank 1 of 2"], "")


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("input", 2, "r2o: error: x.yaml: no such file\n"),
        ("kill", 137, "r2o: rank 1 was ended by SIGKILL; is there enough memory?\n"),
    ],
)
def test_a_failing_ranks_line_is_all_that_is_said(tmp_path: Path, what: str, code: int, said: str) -> None:
    process = launched(tmp_path, what)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (code, said)


def test_a_crashing_ranks_traceback_is_kept(tmp_path: Path) -> None:
    process = launched(tmp_path, "crash")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert err.count("Traceback") == 1
    assert err.endswith("RuntimeError: boom\nr2o: rank 1 failed with exit code 1; its message is above\n")


def signalled(folder: Path, what: str, number: signal.Signals) -> subprocess.Popen[str]:
    process = launched(folder, what)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("ready*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_all_ranks_have_the_time_to_end_in_good_order_and_the_code_is_theirs(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = signalled(tmp_path, "save", number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (75, "")
    assert sorted(p.name for p in tmp_path.glob("saved*")) == [f"saved0-{number.name}", f"saved1-{number.name}"]


def test_the_ranks_are_stopped_with_it(tmp_path: Path) -> None:
    process = signalled(tmp_path, "wait", signal.SIGTERM)
    _, err = process.communicate(timeout=60)  # the pipes close only when the ranks are gone
    assert (process.returncode, err) == (75, "")
