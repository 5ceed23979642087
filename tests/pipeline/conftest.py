"""A workflow of two stages that reads a folder, and what it reads of it."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import inputs
from pipeline.graph import run_stages, verdicts
from pipeline.stages import Stage


class Machine:
    """Two stages, the second of which needs the first, which reads `images`; stands for the launcher."""

    def __init__(self, folder: Path) -> None:
        self.work, self.images, self.started = folder / "work", folder / "images", []
        self.store = self.work / ".r2o" / "inputs.jsonl"
        self.meanwhile: Callable[[], object] = lambda: None
        (self.images / "sub").mkdir(parents=True)
        for name in ("x.jpg", "y.jpg", "sub/z.jpg"):
            (self.images / name).write_bytes(f"{name:22}".encode())
            os.utime(self.images / name, (1e9, 1e9))

    def stages(self) -> tuple[Stage, ...]:
        return tuple(
            Stage(
                name=name,
                module=f"no.{name}",
                arguments=(),
                output=self.work / name,
                marker=self.work / name / "done",
                inputs={"images": self.images} if name == "a" else {},
                settings={},
                needs=needs,
            )
            for name, needs in (("a", ()), ("b", ("a",)))
        )

    def start(self, stage: Stage) -> int:
        self.started.append(stage.name)
        stage.output.mkdir(exist_ok=True)
        self.meanwhile()
        stage.marker.write_text("done")
        return 0

    def run(self) -> list[str]:
        self.started.clear()
        assert run_stages(self.stages(), work=self.work, version="1", start=self.start) == 0
        return [*self.started]

    def said(self) -> dict[str, str]:
        found = verdicts(self.stages(), work=self.work, version="1")
        return {name: str(verdict) for name, verdict in found.items()}

    def state(self, name: str) -> dict:
        return json.loads((self.work / ".r2o" / f"{name}.json").read_bytes())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(inputs, "GRAIN_NS", 0)  # else what the test has just written is read again
    return Machine(tmp_path)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    original = inputs._sha256

    def noting(folder: Path, listed: inputs.Listed, stop: threading.Event) -> str:
        names.append(listed.name)
        return original(folder, listed, stop)

    monkeypatch.setattr(inputs, "_sha256", noting)
    return names
