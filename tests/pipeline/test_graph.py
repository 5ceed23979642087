import dataclasses
import errno
import fcntl
import json
import os
import re
from pathlib import Path

import pytest

from pipeline import states
from pipeline.foundation.errors import InputError
from pipeline.graph import run_stages, verdicts
from pipeline.stages import Stage


class Machine:
    """Stands for the launcher: makes each stage's marker, or fails where told to."""

    def __init__(self, work: Path) -> None:
        self.work, self.started, self.failing = work, [], {}
        self.settings = {"a": 1, "b": 1}

    def stages(self, **inputs: Path) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name=name,
                module=f"no.{name}",
                arguments=("--x=1",),
                output=self.work / name,
                marker=self.work / name / "done",
                inputs=inputs if name == "a" else {},
                settings={"value": self.settings[name]},
                needs=needs,
            )
            for name, needs in (("a", ()), ("b", ("a",)))
        )

    def start(self, stage: Stage) -> int:
        self.started.append(stage.name)
        stage.output.mkdir(exist_ok=True)
        with (stage.output / "log").open("a") as log:
            log.write("x")
        if code := self.failing.get(stage.name, 0):
            return code
        stage.marker.write_text("done")
        return 0

    def run(self, *, version: str = "1", checks: dict | None = None, **inputs: Path) -> int:
        self.started.clear()
        return run_stages(self.stages(**inputs), work=self.work, version=version, start=self.start, checks=checks)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "work")


def test_a_second_run_does_nothing(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run() == 0
    assert machine.started == ["a", "b"]
    capsys.readouterr()
    assert machine.run() == 0
    assert machine.started == []
    assert capsys.readouterr().out.splitlines() == [
        f"[1/2] a → {machine.work / 'a'}: finished and unchanged, skipped",
        f"[2/2] b → {machine.work / 'b'}: finished and unchanged, skipped",
    ]


def test_a_failing_stage_stops_the_run_and_is_resumed(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.failing = {"a": 3}
    assert machine.run() == 3
    assert machine.started == ["a"]
    assert " -m no.a --x=1" in capsys.readouterr().err
    machine.failing = {}
    assert machine.run() == 0
    assert machine.started == ["a", "b"]
    assert (machine.work / "a" / "log").read_text() == "xx"
    assert not (machine.work / ".r2o" / "replaced").exists()


def test_a_stage_without_its_marker_is_run_again(machine: Machine) -> None:
    machine.run()
    (machine.work / "b" / "done").unlink()
    assert machine.run() == 0
    assert machine.started == ["b"]


def test_a_change_upstream_redoes_what_follows_and_keeps_the_former(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.run()
    (machine.work / "a" / "mine.txt").write_text("the user's")
    machine.settings["a"] = 2
    assert machine.run() == 0
    assert machine.started == ["a", "b"]
    out = capsys.readouterr().out
    assert "settings.value: 1 → 2" in out
    assert re.search(r"starting again, changed \(needs\.a: [0-9a-f]{8}… → [0-9a-f]{8}…\);", out)
    kept = sorted((machine.work / ".r2o" / "replaced").iterdir())
    assert [path.name.split("-")[0] for path in kept] == ["a", "b"]
    assert (kept[0] / "mine.txt").read_text() == "the user's"
    assert not (machine.work / "a" / "mine.txt").exists()


def test_changing_back_and_forth_keeps_every_former(machine: Machine) -> None:
    for value in (1, 2, 1, 2):
        machine.settings["b"] = value
        assert machine.run() == 0
    assert len(list((machine.work / ".r2o" / "replaced").iterdir())) == 3


def test_a_stage_that_reconciles_keeps_its_output(machine: Machine) -> None:
    def run() -> int:
        made = [dataclasses.replace(stage, reconciles=stage.name == "b") for stage in machine.stages()]
        return run_stages(made, work=machine.work, version="1", start=machine.start)

    run()
    machine.settings["b"] = 2
    assert run() == 0
    assert machine.started == ["a", "b", "b"]
    assert (machine.work / "b" / "log").read_text() == "xx"
    assert not (machine.work / ".r2o" / "replaced").exists()


def test_a_change_downstream_leaves_what_comes_before(machine: Machine) -> None:
    machine.run()
    machine.settings["b"] = 2
    machine.run()
    assert machine.started == ["b"]


def test_a_half_done_stage_of_other_settings_is_not_resumed(machine: Machine) -> None:
    machine.failing = {"a": 1}
    machine.run()
    machine.failing, machine.settings["a"] = {}, 2
    machine.run()
    assert (machine.work / "a" / "log").read_text() == "x"


def test_another_version_of_the_code_redoes_everything(machine: Machine) -> None:
    machine.run()
    machine.run(version="2")
    assert machine.started == ["a", "b"]


def test_what_the_workflow_did_not_make_is_left_alone_and_told_before_anything_starts(machine: Machine) -> None:
    (machine.work / "b").mkdir(parents=True)
    (machine.work / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="did not make it"):
        machine.run()
    assert machine.started == []
    assert (machine.work / "b" / "thesis.txt").read_text() == "mine"
    (machine.work / "b" / "thesis.txt").unlink()
    assert machine.run() == 0


def test_changed_input_redoes_and_a_missing_one_is_named(machine: Machine, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "x.jpg").write_bytes(b"123")
    machine.run(images=images)
    machine.run(images=images)
    assert machine.started == []
    (images / "y.jpg").write_bytes(b"1")
    machine.run(images=images)
    assert machine.started == ["a", "b"]
    with pytest.raises(InputError, match="nowhere: no such folder"):
        machine.run(images=tmp_path / "nowhere")


def test_two_runs_do_not_share_a_work_folder(machine: Machine) -> None:
    machine.run()
    with (machine.work / ".r2o" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another `r2o run`"):
            machine.run()
    assert machine.run() == 0


def test_a_work_folder_that_is_a_file_or_a_damaged_state_is_one_line(machine: Machine) -> None:
    machine.work.write_text("")
    with pytest.raises(InputError, match="cannot be the work folder"):
        machine.run()
    machine.work.unlink()
    machine.run()
    path = machine.work / ".r2o" / "a.json"
    good = path.read_text()
    flipped = good.replace('"value": 1', '"value": 3')
    assert flipped != good
    for damaged in ("{", "", "[1]", "null", good[:-9], flipped, (machine.work / ".r2o" / "b.json").read_text()):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"a\.json is damaged; put a whole one back, or move it and"):
            machine.run()
    path.write_text(good)
    machine.run()
    assert machine.started == []


@pytest.mark.parametrize("name", ["lock", "a.json", "inputs.jsonl", "replaced"])
def test_a_folder_or_file_in_the_way_of_a_state_is_one_line_and_no_damage(
    machine: Machine, tmp_path: Path, name: str
) -> None:
    (tmp_path / "images").mkdir()
    machine.run(images=tmp_path / "images")
    path = machine.work / ".r2o" / name
    path.unlink(missing_ok=True)
    path.write_text("") if name == "replaced" else path.mkdir()
    machine.settings["a"] = 2
    with pytest.raises(InputError, match=rf"/\.r2o/{name}.*: (Is a directory|File exists); put that right") as caught:
        machine.run(images=tmp_path / "images")
    assert "damaged" not in str(caught.value)
    assert (machine.work / "a" / "log").read_text() == "x"


def test_a_disk_that_is_full_is_one_line(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(states, "write_atomic", full)
    with pytest.raises(InputError, match=r"\.r2o/a\.json: No space left on device; put that right"):
        machine.run()


def test_a_check_runs_before_its_stage_only_when_that_is_to_run(machine: Machine) -> None:
    calls: list[int] = []
    machine.run(checks={"b": lambda: calls.append(len(machine.started))})
    machine.run(checks={"b": lambda: calls.append(len(machine.started))})
    assert calls == [1]


def test_states_say_what_was_done(machine: Machine) -> None:
    machine.failing = {"b": 1}
    machine.run()
    states = {name: json.loads((machine.work / ".r2o" / f"{name}.json").read_bytes()) for name in "ab"}
    assert {name: state["status"] for name, state in states.items()} == {"a": "finished", "b": "started"}
    assert states["b"]["parts"]["needs"] == {"a": states["a"]["fingerprint"]}
    found = verdicts(machine.stages(), work=machine.work, version="1")
    assert {name: str(verdict) for name, verdict in found.items()} == {
        "a": "finished and unchanged",
        "b": "not finished",
    }
