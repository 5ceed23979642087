"""Epochs and K of checkpoints, counted by hand; the chart's lines, by their pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings
from train.config.pretrain import PretrainSettings
from train.evals.frozen.over_run import checkpoints_of, draw_over_epochs

SETTINGS = {
    "epochs": 10,
    "global_batch_size": 32,
    "curriculum": {"schedule": "linear", "initial_num_clusters": 12, "final_num_clusters": 2, "hold_epochs": 0},
}


def write_run(folder: Path, *names: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    settings = PretrainSettings.model_validate(SETTINGS)
    (folder / "config.yaml").write_text(dump_settings(pretrain=settings))
    (folder / "run.json").write_text(json.dumps(sealed({"samples": 110})))  # three steps an epoch
    for name in names:
        (folder / "checkpoints" / name).touch()
    return folder


def test_every_checkpoint_has_its_epoch_and_the_k_of_its_last_step(tmp_path: Path) -> None:
    names = (
        "step-00000000.pt",
        "step-00000003.pt",
        "step-00000004.pt",
        "step-00000030.pt",
        "step-00000030-milestone.pt",
    )
    others = ("damaged-step-00000003.pt", "step-00000004.pt.bak", "step-4.pt")
    run = write_run(tmp_path / "run", *names, *others)
    settings = PretrainSettings.model_validate(SETTINGS)
    k = [settings.num_clusters(epoch) for epoch in (0, 0, 1, 9)]
    assert [tuple(one)[1:] for one in checkpoints_of(run)] == [
        (0, 0, k[0]),
        (3, 1, k[1]),
        (4, 4 / 3, k[2]),
        (30, 10, k[3]),
    ]
    assert k[0] > k[2] > k[3]
    assert [one.path.name for one in checkpoints_of(run)] == [*names[:3], names[4]]


def test_a_run_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config.yaml"):
        checkpoints_of(tmp_path)
    run = write_run(tmp_path / "run")
    assert checkpoints_of(run) == []
    (run / "run.json").write_text('{"samples": 7, "checksum": "0"}')
    with pytest.raises(InputError, match=r"run.json is damaged"):
        checkpoints_of(run)
    (run / "run.json").unlink()
    with pytest.raises(InputError, match=r"run.json cannot be read: No such file"):
        checkpoints_of(run)


def test_the_chart_has_a_line_for_each_score_that_all_have(tmp_path: Path) -> None:
    low, high = {"abo": 0.1, "slic": 0.2, "none": None}, {"abo": 0.3, "slic": 0.2, "none": 0.1}
    draw_over_epochs([(10, high), (0, low)], tmp_path / "chart.png")
    draw_over_epochs([(0, low), (10, high)], tmp_path / "ordered.png")
    chart, ordered = (np.asarray(Image.open(tmp_path / name)) for name in ("chart.png", "ordered.png"))
    assert (chart == ordered).all()
    is_line = (chart == (31, 90, 180)).all(2)
    rows = np.flatnonzero(is_line.any(1))
    first, second = rows[rows < 170], rows[rows >= 170]
    assert len(first) > 100  # from 10 to 30 %
    assert len(second) <= 3  # level
    left, right = np.flatnonzero(is_line[first].any(0))[[0, -1]]
    assert is_line[:170, left].argmax() > is_line[:170, right].argmax()  # rising
