"""Results of fine-tuning, and which row they join."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.compare import row_named
from pipeline.report.measured import read_measurements
from pipeline.report.report import read_table
from pipeline.report.search import find_results
from pipeline.report.table import ResultsTable
from tests.pipeline.report.made_results import Write


def table_of(folder: Path) -> ResultsTable:
    return read_table([folder], scores=(), resamples=9)


def test_fine_tuning_has_a_row_for_each_of_its_weights(write_fine_tuning: Callable[..., Path], tmp_path: Path) -> None:
    write_fine_tuning("mine/eval-voc", {"run": {0: 0.5, 1: 0.75}, "random": {0: 0.25, 1: None}})
    table = table_of(tmp_path)
    assert [(row.shown, row.short) for row in table.rows] == [("random", "–"), ("mine", "run aaaaaaaa")]
    assert table.cells[1, 0].spread == pytest.approx((0.625, np.sqrt(0.03125), 2))
    assert table.cells[0, 0].spread == (0.25, None, 1)
    assert table.cells[1, 0].by_class["cat"] == table.cells[1, 0].spread
    assert table.cells[1, 0].by_class["dog"] == (None, None, 0)
    assert table.cells[1, 0].interval is None
    assert row_named(table.rows, "run aaaa") == 1
    other = write_fine_tuning("b/eval-voc", {"run": {0: 0.5}}, protocol={"iterations": 60, "num_workers": 0})
    same = write_fine_tuning("c/eval-voc", {"run": {2: 0.5}}, protocol={"iterations": 30, "seeds": [2], "cache_mib": 1})
    assert read_measurements([other, same]).damaged == []
    assert [c.unlike for c in table_of(tmp_path).columns] == [None, (1, ("iterations: 60 → 30",))]


def test_fine_tuning_and_frozen_features_of_one_run_share_a_row(
    write: Write, write_fine_tuning: Callable[..., Path], tmp_path: Path
) -> None:
    write("mine/eval-frozen/knn", label="mine", weights="the file")
    write_fine_tuning("mine/eval-voc", {"run": {0: 0.5}})
    assert len(table_of(tmp_path).rows) == 2
    (tmp_path / "mine" / "backbone.pt").write_text("the file")
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"fingerprint": "a" * 64}))
    assert set(table_of(tmp_path).cells) == {(0, 0), (0, 1)}
    (tmp_path / "mine" / "run.json").write_text(json.dumps({"fingerprint": "b" * 64}))  # trained again since
    assert len(table_of(tmp_path).rows) == 2


@pytest.mark.parametrize(
    "seeds",
    [None, [], {"x": {}}, {"0": {"mean_iou": "high"}}, {"0": {"mean_iou": 1.5}}, {"-1": {"mean_iou": 0.5}}, {"0": 0.5}],
)
def test_fine_tuning_that_is_not_as_written_is_damaged(
    write_fine_tuning: Callable[..., Path], tmp_path: Path, seeds: object
) -> None:
    write_fine_tuning("a/eval-voc", {}, inits={"run": {"seeds": seeds}})
    read = read_measurements(find_results([tmp_path]).files)
    assert read.measurements == []
    assert "the scores are not what this r2o reads" in read.damaged[0]
