"""The GPU day as CI sees it: all of it at tiny sizes on a CPU. What fails or hangs is not passed over."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.gpu import day
from tests.gpu.aims import AIMS
from tests.gpu.methods import METHODS
from tests.gpu.parts import Day, Part
from tests.gpu.places import ROOT
from tests.gpu.summary import failures, read_results

pytestmark = pytest.mark.processes

CHECKS = """
from tests.gpu.telling import check
with check("a sum") as found:
    found["sum"] = 1 + 1
    assert found["sum"] == {expected}
with check("a figure") as found:
    found["ok"] = {ok}
"""
HANGS = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
print("child", child.pid, flush=True)
child.wait()
"""
ENDS_WHEN_ASKED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))
print("ready", flush=True)
time.sleep(300)
"""


def part_of(folder: Path, name: str, program: str, most: float = 60.0, reads: str | None = None) -> Part:
    """A part that runs a program of its own."""
    path = folder / f"{name}.py"
    path.write_text(program)
    return Part(name, (str(path),), most=most, least=0.5, reads=reads)


def day_of(folder: Path, *parts: Part, budget: float = 100.0) -> tuple[int, dict[str, dict]]:
    """A day of these parts, side by side: its exit code, and how each part ended."""
    with Day(out=folder / "out", shards=folder / "shards", budget=budget, grace=0.5) as made:
        made.side_by_side(parts)
        code = made.end()
        return code, {line["part"]: line for line in made.lines() if "what" not in line}


@pytest.mark.slow
def test_the_whole_day_at_tiny_sizes(tmp_path: Path) -> None:
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PARTS", "SHARDS", "DATA", "GPU_DAY_PART")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.day"],
        env={**kept, "DRY": "1", "OUT": str(tmp_path), "BUDGET": "1500"},  # a busy machine takes as long as it takes
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1600,
    )
    assert done.returncode in (0, 1), done.stderr
    said = f"{done.stdout[-6000:]}\n{(tmp_path / 'log.txt').read_text()[-20000:]}\n{done.stderr}"
    lines = read_results((tmp_path / "results.jsonl").read_text())
    ends = {line["part"]: line.get("exit") for line in lines if "what" not in line}
    names = {part.name for stage in day.STAGES for part in stage if part.dry}
    assert ends == dict.fromkeys({"shards", *names}, 0), said
    assert [line for line in lines if line.get("ok", True) is not True] == [], said
    assert done.returncode == 0, said
    assert {line["part"] for line in lines if "what" in line} == set(ends)  # each has told something
    assert [line["method"] for line in lines if line.get("exit") == 0 and "method" in line] == list(METHODS)
    scored = [line["weights"] for line in lines if line.get("what") == "frozen scores"]
    assert scored == ["random", "random-bn", *METHODS]
    page = (tmp_path / "benchmarks.md").read_text()
    assert page.count("| not measured |") == len(AIMS)  # whatever a CPU did
    assert all(re.search(rf"^\| {label} \| .*\]", page, flags=re.M) for label in scored)
    assert {line["kind"] for line in lines if "kind" in line} == {"byol", "r2o_k4", "r2o_k128"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "benchmarks.md",
        "learn.tgz",
        "log.txt",
        "results.jsonl",
        "shards",
        "summary.txt",
    ]


@pytest.mark.parametrize(
    ("expected", "ok", "failed"),
    [(2, True, []), (3, True, ["checks: a sum"]), (2, False, ["checks: a figure"])],
)
def test_a_check_that_fails_fails_the_day(tmp_path: Path, expected: int, ok: bool, failed: list[str]) -> None:
    code, ends = day_of(tmp_path, part_of(tmp_path, "checks", CHECKS.format(expected=expected, ok=ok)))
    assert ends["checks"]["exit"] == 0  # a check that fails ends nothing else
    lines = read_results((tmp_path / "out/results.jsonl").read_text())
    assert failures(lines) == failed
    assert code == (1 if failed else 0)
    assert [line["what"] for line in lines if line.get("what")] == ["a sum", "a figure"]
    assert all(one in (tmp_path / "out/summary.txt").read_text() for one in failed)


def test_a_part_that_ends_badly_fails_the_day_and_its_output_is_kept(tmp_path: Path) -> None:
    bad = part_of(tmp_path, "bad", "print('so far'); raise SystemExit(3)")
    code, ends = day_of(tmp_path, bad, part_of(tmp_path, "good", ""))
    assert (code, ends["bad"]["exit"], ends["good"]["exit"]) == (1, 3, 0)
    assert "=== bad (exit 3" in (log := (tmp_path / "out/log.txt").read_text())
    assert "so far" in log


def test_a_part_that_hangs_is_killed_after_its_limit_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    code, ends = day_of(tmp_path, part_of(tmp_path, "hangs", HANGS, most=3))
    assert time.monotonic() - began < 60
    assert (code, ends["hangs"]["exit"], ends["hangs"]["limit"]) == (1, 137, 3)
    child = int((tmp_path / "out/log.txt").read_text().split("child ")[1].split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (5, 124)])
def test_a_part_that_ends_when_asked_to_has_not_failed(tmp_path: Path, code: int, expected: int) -> None:
    part = part_of(tmp_path, "asked", ENDS_WHEN_ASKED.format(code=code), most=3)
    exit_code, ends = day_of(tmp_path, part)
    assert (ends["asked"]["exit"], ends["asked"]["limit"]) == (expected, 3)
    assert exit_code == (1 if expected else 0)


def test_what_cannot_be_begun_is_skipped_and_said(tmp_path: Path) -> None:
    (tmp_path / "shards/tiny").mkdir(parents=True)
    (tmp_path / "shards/tiny/manifest.json").touch()
    fine = part_of(tmp_path, "fine", "", reads="tiny")
    code, ends = day_of(tmp_path, fine, part_of(tmp_path, "learn", "", reads="nette"))
    assert (code, ends["fine"]["exit"]) == (0, 0)
    assert ends["learn"]["skipped"] == f"no shards in {tmp_path}/shards/nette"
    code, ends = day_of(tmp_path, fine, budget=4.2)  # 4 are kept for the end
    assert (code, ends["fine"]["skipped"]) == (0, "0 s left, 0.5 needed")
    assert "skipped: fine" in (tmp_path / "out/summary.txt").read_text()


def test_what_needs_more_gpus_than_there_are_is_skipped(tmp_path: Path) -> None:
    part = replace(part_of(tmp_path, "nccl", ""), gpus=2)
    for gpus, expected in ((0, "0 GPUs, 2 needed"), (1, "1 GPU, 2 needed"), (2, None)):
        with Day(out=tmp_path / f"out{gpus}", shards=tmp_path, budget=100, gpus=gpus) as made:
            made.side_by_side([part])
        assert made.lines()[-1].get("skipped") == expected


def test_the_last_part_keeps_its_share_and_is_told_its_time(tmp_path: Path) -> None:
    long = part_of(tmp_path, "long", "import time; time.sleep(60)", most=50)
    tells = "import os, time; print(float(os.environ['GPU_DAY_UNTIL']) - time.monotonic(), time.monotonic())"
    later, learn = part_of(tmp_path, "later", ""), replace(part_of(tmp_path, "learn", tells), most=math.inf)
    with Day(out=tmp_path / "out", shards=tmp_path, budget=10, grace=0.5) as made:
        began = made.began
        day.run(made, [[long], [later], [learn]], makes_shards=False)
    ends = {line["part"]: line for line in made.lines()}
    assert (ends["long"]["exit"], ends["learn"]["exit"]) == (124, 0)
    assert ends["long"]["limit"] == pytest.approx(10 - 4 - 0.3 * 10, abs=0.6)  # 4 s are kept for the end of the day
    assert ends["later"]["skipped"] == "0 s left, 0.5 needed"
    left, now = map(float, (tmp_path / "out/log.txt").read_text().split("=== learn")[1].split("\n")[1].split())
    assert left + now - began == pytest.approx(10 - 4, abs=0.2)


def test_by_default_learning_has_150_seconds_whatever_the_others_take() -> None:
    assert day.LEARNING * day.BUDGET >= 150
    assert [part.name for part in day.STAGES[-1]] == ["learn"]
    assert day.STAGES[-1][0].most == math.inf


@pytest.mark.slow
def test_two_ranks_through_gloo_have_the_losses_of_one_process(tmp_path: Path) -> None:
    places = {"OUT": str(tmp_path), "SHARDS": str(tmp_path / "shards"), "GPU_DAY_WORK": str(tmp_path)}
    given = {**os.environ, "DRY": "1", **places}
    for name in ("make_shards", "nccl"):
        subprocess.run([sys.executable, "-m", f"tests.gpu.{name}"], env=given, cwd=ROOT, check=True, timeout=900)
    found = read_results((tmp_path / "results.jsonl").read_text())[-1]
    assert found["ok"] is True, found
    assert len(found["one"]) == len(found["two"]) == 4
    np.testing.assert_allclose(found["two"], found["one"], rtol=1e-3)


@pytest.mark.parametrize("dry", [False, True])
def test_what_is_timed_waits_for_all_before_it_but_in_a_dry_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool
) -> None:
    monkeypatch.setattr(day, "CORES", 2)
    sleep = "import time; print(time.monotonic()); time.sleep({}); print(time.monotonic())"
    lengths = {"short": 1, "long": 3, "timed": 0.2}
    short, long, timed = (part_of(tmp_path, name, sleep.format(length)) for name, length in lengths.items())
    with Day(out=tmp_path / "out", shards=tmp_path / "shards", budget=100, dry=dry) as made:
        day.run(made, [[short, long], [timed]], makes_shards=True)
    spans = {}
    for said in (tmp_path / "out/log.txt").read_text().split("=== ")[1:]:
        name, *_, began, ended = said.split()
        spans[name] = float(began), float(ended)
    assert set(spans) == set(lengths)
    assert spans["long"][0] < spans["short"][1]
    assert (spans["timed"][0] < spans["long"][1]) == dry


def test_an_earlier_day_in_the_folder_counts_for_nothing(tmp_path: Path) -> None:
    assert day_of(tmp_path, part_of(tmp_path, "bad", "raise SystemExit(3)"))[0] == 1
    code, ends = day_of(tmp_path, part_of(tmp_path, "good", ""))
    assert (code, list(ends)) == (0, ["good"])
    assert len(read_results((tmp_path / "out/results.jsonl").read_text())) == 2


def test_a_day_that_is_ended_leaves_no_part_running(tmp_path: Path) -> None:
    part = part_of(tmp_path, "hangs", HANGS)
    program = f"""
import signal, sys
from pathlib import Path
from tests.gpu.parts import Day, Part
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with Day(out=Path({str(tmp_path / "out")!r}), shards=Path("none"), budget=100) as day:
    day.side_by_side([Part("hangs", {part.arguments!r}, most=60, least=1)])
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    said = tmp_path / "out/.hangs.log"
    deadline = time.monotonic() + 60
    while not (said.exists() and "child" in said.read_text() and said.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = psutil.Process(int(said.read_text().split()[1]))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"DRY": "1", "PARTS": "env opps"}, "no part is called opps; there are env, pytest, ops, "),
        ({"DRY": "1", "OUT": str(ROOT)}, "which holds the project"),
        ({"CUDA_VISIBLE_DEVICES": ""}, "no CUDA device"),
    ],
)
def test_a_day_that_cannot_begin_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: dict[str, str], why: str
) -> None:
    for name, value in {"DRY": "", "PARTS": "", "OUT": str(tmp_path / "out"), **given}.items():
        monkeypatch.setenv(name, value)
    assert day.main([]) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
