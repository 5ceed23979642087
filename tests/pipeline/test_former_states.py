"""What 0.1.0 knew of stages: digests of names and sizes. What it finished is not done again for another formula."""

import hashlib
import json
import os
from pathlib import Path

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.inputs import digest_of_sizes, list_folder
from tests.pipeline.conftest import Machine

NEW = b"same size, other bytes"


def former_digest(folder: Path) -> str:
    """As 0.1.0 made it."""
    digest = hashlib.sha256()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for path in sorted(os.path.join(root, name) for name in names):
            size = os.stat(path).st_size if os.path.exists(path) else None
            digest.update(os.fsencode(os.path.relpath(path, folder)) + f"\0{size}\n".encode())
    return digest.hexdigest()


def as_0_1_0_left_it(machine: Machine) -> None:
    """States with digests of names and sizes and no checksum, and nothing known of contents."""
    machine.run()
    a, b = machine.state("a"), machine.state("b")
    a["parts"]["inputs"]["images"] = former_digest(machine.images)
    a["fingerprint"] = b["parts"]["needs"]["a"] = fingerprint(**a["parts"])
    b["fingerprint"] = fingerprint(**b["parts"])
    for state in (a, b):
        del state["checksum"], state["inputs_by"]
        (machine.work / ".r2o" / f"{state['stage']}.json").write_text(json.dumps(state))
    machine.store.unlink()


def test_what_0_1_0_finished_is_not_done_again_and_is_told_by_content_from_then_on(machine: Machine) -> None:
    os.symlink("nowhere", machine.images / "broken")
    as_0_1_0_left_it(machine)
    assert machine.said() == {"a": "finished and unchanged", "b": "finished and unchanged"}
    assert machine.run() == []
    assert [machine.state(name)["inputs_by"] for name in "ab"] == ["content", "content"]
    assert machine.run() == []
    (machine.images / "x.jpg").write_bytes(NEW)
    assert machine.run() == ["a", "b"]


def test_what_0_1_0_finished_and_has_changed_by_its_measure_is_done_again(machine: Machine) -> None:
    as_0_1_0_left_it(machine)
    (machine.images / "n.jpg").write_bytes(b"")
    assert machine.said()["a"].startswith("changed (inputs.images: ")
    assert machine.run() == ["a", "b"]


def test_the_digest_of_0_1_0_is_still_made(machine: Machine) -> None:
    os.symlink("nowhere", machine.images / "broken")
    (machine.images / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"1")
    listed = list_folder(machine.images, but=machine.work)
    assert digest_of_sizes(listed) == former_digest(machine.images)
