"""The panels of a whole run: from before its first step, and left alone by a start that goes on."""

from pathlib import Path

import pytest
import yaml

from tests.train.test_pretrain import SMALL, finish
from train.engine.checkpoint import checkpoints
from train.run.panels.frames import Frame, read_frame

pytestmark = [pytest.mark.processes, pytest.mark.long]

SHORT = [f"--set=pretrain.{x}" for x in ("epochs=2", "curriculum.hold_epochs=0", "run.panels_every_steps=3")]


def frame_of(run: Path, step: int) -> Frame:
    frame = read_frame(run / "panels" / f"step-{step:08d}.npz")
    assert frame is not None
    return frame


def test_panels_begin_at_step_0_and_a_start_that_goes_on_from_there_leaves_it(shards: Path, tmp_path: Path) -> None:
    run, config = tmp_path / "run", tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(SMALL))
    finish(shards, run, config, *SHORT, "--set=pretrain.run.keep_checkpoints=3")
    frames = [frame_of(run, step) for step in (0, 3, 6, 8)]
    # K(0) = 12, K(1) = 4 + cos(π/4)·8; and the K of the last epoch, in at most so many colours
    assert [frame.num_clusters for frame in frames] == [(12, 9), (12, 9), (9, 9), (9, 9)]
    assert all(frame.masks.at_end.max() < 9 for frame in frames)
    assert frames[0].masks.at_epoch.max() >= 9
    before = {path.name: path.read_bytes() for path in (run / "panels").iterdir()}
    for checkpoint in checkpoints(run)[1:]:
        checkpoint.unlink()
    (run / "backbone.pt").unlink()  # as if it had been killed in its first steps
    first = run / "panels" / "step-00000000.png"
    stamp = first.stat().st_mtime_ns
    (run / "panels" / "step-00000008.png").unlink()
    assert "going on after step 0" in finish(shards, run, config, *SHORT)
    assert first.stat().st_mtime_ns == stamp
    after = {path.name: path.read_bytes() for path in (run / "panels").iterdir()}
    assert [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)] == []
