"""Inputs of the workflow by content: what is taken for changed, what is read for that, and what a kill leaves."""

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from pipeline import inputs
from pipeline.foundation.errors import InputError
from pipeline.inputs import list_folder, load_contents, read_contents
from tests.pipeline.conftest import Machine

NEW = b"same size, other bytes"


def test_an_input_of_equal_size_and_other_content_is_a_change(machine: Machine) -> None:
    assert machine.run() == ["a", "b"]
    assert machine.run() == []
    (machine.images / "sub/z.jpg").write_bytes(NEW)
    assert machine.run() == ["a", "b"]
    assert machine.run() == []


def test_it_is_a_change_also_where_the_times_are_those_of_before(machine: Machine, tmp_path: Path) -> None:
    """As where archives are unpacked over each other, or a folder is copied with its times."""
    machine.run()
    (machine.images / "x.jpg").write_bytes(NEW)
    os.utime(machine.images / "x.jpg", (1e9, 1e9))
    assert machine.run() == ["a", "b"]
    (tmp_path / "new").write_bytes(NEW[::-1])
    os.utime(tmp_path / "new", (1e9, 1e9))
    os.replace(tmp_path / "new", machine.images / "y.jpg")
    assert machine.run() == ["a", "b"]


def test_a_file_that_was_only_touched_or_a_folder_that_moved_is_none(machine: Machine, read: list[str]) -> None:
    machine.run()
    read.clear()
    (machine.images / "x.jpg").touch()
    assert machine.run() == []
    assert read == ["x.jpg"]
    machine.images = machine.images.rename(machine.images.with_name("elsewhere"))
    assert machine.run() == []


def test_what_is_known_is_not_read_again(machine: Machine, read: list[str]) -> None:
    machine.run()
    assert sorted(read) == ["sub/z.jpg", "x.jpg", "y.jpg"]
    read.clear()
    machine.run()
    assert read == []
    (machine.images / "y.jpg").unlink()
    (machine.images / "n.jpg").write_bytes(NEW)
    assert machine.run() == ["a", "b"]
    assert read == ["n.jpg"]
    assert sorted(load_contents(machine.store)[str(machine.images)]) == ["n.jpg", "sub/z.jpg", "x.jpg"]


def test_a_file_changed_just_before_is_read_again_as_its_times_may_be_coarse(
    machine: Machine, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "GRAIN_NS", 10**18)
    machine.run()
    read.clear()
    machine.run()
    assert sorted(read) == ["sub/z.jpg", "x.jpg", "y.jpg"]


def test_the_digest_is_over_names_and_contents(machine: Machine) -> None:
    machine.run()
    expected = hashlib.sha256()
    for name in ("x.jpg", "y.jpg", "sub/z.jpg"):
        content = hashlib.sha256((machine.images / name).read_bytes()).hexdigest()
        expected.update(f"{name}\0{content}\n".encode())
    assert machine.state("a")["parts"]["inputs"] == {"images": expected.hexdigest()}


def test_names_that_are_not_utf_8_are_known_as_well(machine: Machine, read: list[str]) -> None:
    (machine.images / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    assert machine.run() == ["a", "b"]
    assert len(read) == 4
    assert machine.run() == []
    assert len(read) == 4


def test_status_tells_at_once_reads_nothing_and_writes_nothing(machine: Machine, read: list[str]) -> None:
    assert machine.said() == {"a": "not started", "b": "not started"}
    assert not machine.work.exists()
    machine.run()
    unchanged = {"a": "finished and unchanged", "b": "finished and unchanged"}
    compared = "of its input files are still to be compared"
    assert machine.said() == unchanged
    before = machine.store.read_bytes()
    read.clear()
    (machine.images / "x.jpg").touch()
    assert machine.said() == {
        **unchanged,
        "a": f"finished and unchanged, but 1 {compared}",
    }
    (machine.images / "x.jpg").write_bytes(b"longer than it was before")
    assert machine.said()["a"].startswith("changed (inputs.images: ")
    assert machine.said()["b"].startswith("changed (needs.a: ")
    machine.store.unlink()
    assert machine.said() == {
        **unchanged,
        "a": f"finished and unchanged, but 3 {compared}",
    }
    machine.store.write_bytes(before)
    (machine.images / "x.jpg").unlink()
    assert machine.said()["a"].startswith("changed (inputs.images: ")
    assert read == []
    assert machine.store.read_bytes() == before


def test_an_interrupted_reading_keeps_what_it_has_read(
    machine: Machine, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = inputs._sha256

    def interrupted(folder: Path, listed: inputs.Listed, stop: threading.Event) -> str:
        if listed.name == "sub/z.jpg":
            raise KeyboardInterrupt
        return original(folder, listed, stop)

    monkeypatch.setattr(inputs, "_sha256", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.run()
    assert sorted(read) == ["x.jpg", "y.jpg"]
    monkeypatch.setattr(inputs, "_sha256", original)
    assert machine.run() == ["a", "b"]
    assert sorted(read) == ["sub/z.jpg", "x.jpg", "y.jpg"]


def test_a_damaged_store_is_made_again(machine: Machine, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BATCH", 1)
    machine.run()
    good = machine.store.read_bytes()
    first, second, third = good.splitlines(keepends=True)
    other = json.loads(first)
    other["files"]["x.jpg"][3] = "0" * 64
    damages = {
        b"": 3, good[:-20]: 1, first[:-30] + second + third: 2, b"null\n[]\n7\n" + third: 2, b"\xff\n" + good: 0,
        json.dumps(other).encode() + b"\n" + second + third: 1, b"[" * 100_000 + b"\n" + first + third: 1,
    }  # fmt: skip
    for damaged, count in damages.items():
        machine.store.write_bytes(damaged)
        read.clear()
        assert machine.run() == []
        assert len(read) == count
    machine.store.write_bytes(first[:-30])  # a kill cut it short, and the next run appends
    inputs._append(machine.store, str(machine.images), load_contents_of(second))
    assert list(load_contents(machine.store)[str(machine.images)]) == ["y.jpg"]


def load_contents_of(line: bytes) -> dict[str, inputs.Known]:
    return {name: inputs.Known(*known) for name, known in json.loads(line)["files"].items()}


def test_a_file_that_goes_or_cannot_be_read_is_named(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = {machine.images: list_folder(machine.images, but=machine.work)}
    (machine.images / "y.jpg").unlink()
    machine.store.parent.mkdir(parents=True)
    with pytest.raises(InputError, match=r"images/y\.jpg: No such file or directory; put that right"):
        read_contents(listed, machine.store)
    (machine.images / "y.jpg").write_bytes(NEW)
    with pytest.raises(InputError, match=r"images/y\.jpg: changed while it was read; run the same command again"):
        read_contents(listed, machine.store)

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(machine.images / "sub"))

    monkeypatch.setattr(inputs.os, "scandir", fail)
    with pytest.raises(InputError, match=r"images/sub: Permission denied; put that right"):
        machine.run()


@pytest.mark.parametrize("change", ["content", "new", "gone"])
def test_a_stage_whose_input_changed_while_it_ran_is_not_finished(machine: Machine, change: str) -> None:
    def meanwhile() -> None:
        path = machine.images / ("n.jpg" if change == "new" else "x.jpg")
        path.unlink() if change == "gone" else path.write_bytes(NEW)
        machine.meanwhile = lambda: None

    machine.meanwhile = meanwhile
    with pytest.raises(InputError, match=r"/images: files changed while stage a could read them, so it is not"):
        machine.run()
    assert machine.started == ["a"]
    assert machine.state("a")["status"] == "started"
    assert machine.run() == ["a", "b"]


def test_links_pipes_and_what_the_workflow_itself_makes(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "w.jpg").write_bytes(b"1")
    os.symlink(tmp_path / "far", machine.images / "linked")
    os.symlink(machine.images, machine.images / "sub" / "loop")
    os.symlink(tmp_path / "gone", machine.images / "broken")
    os.mkfifo(machine.images / "pipe")
    machine.work = machine.images / "work"
    assert machine.run() == ["a", "b"]
    names = [file.name for file in list_folder(machine.images, but=machine.work)]
    assert names == ["broken", "pipe", "x.jpg", "y.jpg", "linked/w.jpg", "sub/z.jpg"]
    assert machine.run() == []
    (tmp_path / "far" / "w.jpg").write_bytes(b"2")
    assert machine.run() == ["a", "b"]


def test_no_link_below_the_state_folder_is_followed(machine: Machine, tmp_path: Path) -> None:
    machine.run()
    for name in ("inputs.jsonl", "a.json", "replaced"):
        path = machine.work / ".r2o" / name
        path.rename(tmp_path / "kept") if path.exists() else (tmp_path / "kept").mkdir()
        path.symlink_to(tmp_path / "kept")
        (machine.images / "x.jpg").write_bytes(os.urandom(22))
        with pytest.raises(InputError, match=f"{name}: a link, and r2o follows none there"):
            machine.run()
        path.unlink()
        if name != "replaced":
            (tmp_path / "kept").rename(path)
    machine.store.parent.rename(tmp_path / "states")
    machine.store.parent.symlink_to(tmp_path / "states")
    for start in (machine.run, machine.said):
        with pytest.raises(InputError, match=r"\.r2o: a link, and r2o follows none there"):
            start()
