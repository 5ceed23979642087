"""What stands in one cell, in one row and in one column; what is left out, and that it is said."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.scores import ImageCounts, score_of, write_scores
from pipeline.foundation.errors import InputError
from pipeline.report.compare import baseline_of, compare_rows, row_named
from pipeline.report.report import read_table
from pipeline.report.statistics import Draws, percentile_interval, resampled_means
from pipeline.report.table import ResultsTable
from tests.pipeline.report.made_results import Write, iou_counts


def table_of(folder: Path, *scores: str, resamples: int = 40) -> ResultsTable:
    return read_table([folder], scores=scores, resamples=resamples)


def test_a_cell_is_the_mean_over_seeds_with_the_interval_of_that_mean(write: Write, tmp_path: Path) -> None:
    counts = [write(f"s{3 - seed}", seed=seed) for seed in range(3)]  # the files are in another order
    table = table_of(tmp_path)
    (cell,) = table.cells.values()
    scores = [score_of(one) for one in counts]
    assert cell.spread == pytest.approx((np.mean(scores), np.std(scores, ddof=1), 3))
    means = resampled_means(counts, Draws(images=5, resamples=40))
    assert cell.interval == percentile_interval(means)
    assert [one.seed for one in cell.measurements] == [0, 1, 2]
    assert table.remarks == ()


def test_equal_weights_are_one_row_whatever_they_are_called(write: Write, tmp_path: Path) -> None:
    write("a", label="mine", weights="w")
    write("b", label="a copy", weights="w", protocol="context")
    write("c", label="mine", weights="other")
    write("d", label="mine", weights="w", protocol="linear", batch_norm="data")
    table = table_of(tmp_path)
    w, other = (hashlib.sha256(name).hexdigest()[:8] for name in (b"w", b"other"))
    assert {(row.shown, row.short) for row in table.rows} == {
        ("mine", w), ("mine", other), ("mine (BN of the data)", w),
    }  # fmt: skip
    assert len(table.rows) == 3
    assert table.remarks == (f"mine and a copy are the same weights ({w}): one row",)


def test_random_weights_come_first_and_are_rows_by_backbone(write: Write, tmp_path: Path) -> None:
    write("a", label="ours")
    write("b", label="random-bn", batch_norm="data")
    write("c", label="random", batch_norm="initial")
    write("d", label="random", batch_norm="initial", backbone="resnet50")
    table = table_of(tmp_path)
    assert [(row.shown, row.backbone) for row in table.rows] == [
        ("random", "resnet18"), ("random", "resnet50"), ("random-bn", "resnet18"), ("ours", "resnet18"),
    ]  # fmt: skip
    assert [baseline_of(table, row, 0) for row in range(4)] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"settings": {"size": 448}}, "size: 224 → 448"),
        ({"settings": {"features": {"dtype": "float32"}}}, "features: (absent) → {'dtype': 'float32'}"),
        ({"version": 2}, "protocol: r2o.knn/1 → r2o.knn/2"),
        ({"data": {"fingerprint": "b" * 64}}, "data.content: dddddddddddd → bbbbbbbbbbbb"),
    ],
)
def test_other_settings_or_data_are_another_column_and_named(
    write: Write, tmp_path: Path, other: dict[str, object], said: str
) -> None:
    write("a", label="a")
    write("b", label="b", **other)
    table = table_of(tmp_path)
    first, second = table.columns
    assert first.unlike is None
    assert second.unlike == (1, (said,))
    assert set(table.cells) == {(0, 0), (1, 1)}
    assert compare_rows(table, 0, 1, 0) is None


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"seeds": [0, 1, 2], "baselines": ["random"]}},
        {"settings": {"report_classes": ["cat"]}},
        {"data": {"name": "a copy"}},
    ],
)
def test_what_decides_no_score_is_no_other_column(write: Write, tmp_path: Path, other: dict[str, object]) -> None:
    write("a", label="a")
    write("b", label="b", **other)
    assert set(table_of(tmp_path).cells) == {(0, 0), (1, 0)}


def test_report_classes_divide_the_scores_that_depend_on_them(write: Write, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(name, label=name, settings={"report_classes": [name]}, scores={"report_mean_iou": 0.5})
    assert len(table_of(tmp_path, "mean_iou").columns) == 1
    assert table_of(tmp_path, "report_mean_iou").columns[1].unlike == (1, ("report_classes: ['cat'] → ['dog']",))


def test_scores_are_chosen_and_unknown_ones_named(write: Write, tmp_path: Path) -> None:
    write("a", scores={"accuracy": 0.25, "nothing": None})
    write("b", protocol="linear", scores={"accuracy": 0.5})
    assert [(c.first.name, c.score) for c in table_of(tmp_path).columns] == [
        ("linear", "mean_iou"),
        ("knn", "mean_iou"),
    ]
    every = table_of(tmp_path, "all")
    assert [(c.first.name, c.score, c.is_headline) for c in every.columns] == [
        ("linear", "mean_iou", True), ("linear", "accuracy", False),
        ("knn", "mean_iou", True), ("knn", "accuracy", False), ("knn", "nothing", False),
    ]  # fmt: skip
    cell = every.cells[0, 3]
    assert (cell.spread.mean, cell.interval, cell.resampled) == (0.25, None, None)
    assert every.cells[0, 4].spread == (None, None, 0)
    assert every.remarks == ("[5] ours: 1 of 1 seeds could not be scored",)
    with pytest.raises(
        InputError, match="--score mIoU: these results have none; there are accuracy, mean_iou, nothing"
    ):
        table_of(tmp_path, "mIoU")


def test_null_scores_are_left_out_of_the_mean_and_said(write: Write, tmp_path: Path) -> None:
    nothing = ImageCounts("iou", np.zeros((5, 3)), np.zeros((5, 3)))
    counts = write("a", seed=1)
    write("b", seed=2, counts=nothing)
    write("c", label="never", counts=nothing)
    table = table_of(tmp_path)
    assert table.cells[0, 0].spread == (score_of(counts), None, 1)
    assert table.cells[0, 0].interval == percentile_interval(resampled_means([counts], Draws(images=5, resamples=40)))
    never = table.cells[1, 0]
    assert (never.spread.n, never.interval) == (0, None)
    assert table.remarks[0] == "[1] ours: 1 of 2 seeds could not be scored"


def test_results_that_are_there_twice_count_once(write: Write, tmp_path: Path) -> None:
    counts = write("a", seed=0)
    write("b", seed=0)
    write("c", seed=0, counts=iou_counts(9))
    table = table_of(tmp_path)
    (cell,) = table.cells.values()
    assert cell.spread == (score_of(counts), None, 1)
    at = {name: tmp_path / name / "results.json" for name in "abc"}
    assert table.remarks == (
        f"[1] ours, seed 0: {at['a']} is shown; {at['b']} holds the same again; counted once",
        f"[1] ours, seed 0: {at['a']} is shown; {at['c']} differs; left out",
    )


def test_a_comparison_is_paired_over_the_same_images(write: Write, tmp_path: Path) -> None:
    ours = write("a", label="a", counts=iou_counts(1))
    theirs = write("b", label="b", counts=iou_counts(2))
    write("c", label="c", counts=iou_counts(3), names=tuple("vwxyz"))
    found = compare_rows(table_of(tmp_path), 0, 1, 0)
    draws = Draws(images=5, resamples=40)
    means = [resampled_means([one], draws) for one in (ours, theirs)]
    assert found is not None
    assert found.difference == pytest.approx(score_of(ours) - score_of(theirs))  # type: ignore[operator]
    assert found.probability == pytest.approx(np.mean(means[0] > means[1]) + np.mean(means[0] == means[1]) / 2)
    assert found.interval == percentile_interval(means[0] - means[1])
    other = compare_rows(table_of(tmp_path), 0, 2, 0)
    assert other is not None
    assert (other.probability, other.why) == (None, "scored on other images")
    without = compare_rows(table_of(tmp_path, resamples=0), 0, 1, 0)
    assert without is not None
    assert (without.difference, without.probability, without.why) == (found.difference, None, "--bootstrap 0")


def test_rows_are_named_by_label_backbone_or_hash(write: Write, tmp_path: Path) -> None:
    write("a", label="random", batch_norm="initial")
    write("b", label="random", batch_norm="initial", backbone="resnet50")
    write("c", label="ours")
    rows = table_of(tmp_path).rows
    assert [row_named(rows, name) for name in ("ours", "random resnet50", rows[2].short, rows[2].sha256 or "")] == [
        2,
        1,
        2,
        2,
    ]
    with pytest.raises(InputError, match=r"'random' is several: 'random' of resnet18 \(–\), 'random' of resnet50"):
        row_named(rows, "random")
    for name in ("ou", rows[2].short[:3], ""):
        with pytest.raises(InputError, match="is none of the weights: 'random' of resnet18"):
            row_named(rows, name)


def damaged(kind: str, folder: Path) -> None:
    npz, results = folder / "per_image.npz", folder / "results.json"
    if kind == "missing":
        npz.unlink()
    elif kind == "changed":
        npz.write_bytes(npz.read_bytes()[:-1] + b"x")
    elif kind == "link":
        npz.rename(folder / "elsewhere")
        npz.symlink_to(folder / "elsewhere")
    else:  # written so, with a hash that fits
        members = json.loads(results.read_text())
        counts = {
            "another score": ImageCounts("mean", np.array([0.5, 0.5]), np.ones(2)),
            "not finite": ImageCounts("mean", np.array([0.5, np.nan]), np.ones(2)),
            "negative": ImageCounts("mean", np.array([0.5, 0.5]), np.array([2.0, -1.0])),
            "shapes": ImageCounts("mean", np.array([0.5, 0.5]), np.ones((2, 2))),
            "names": ImageCounts("mean", np.ones(3), np.ones(3)),
        }[kind]
        for name in ("checksum", "format", "format_version", "per_image"):
            del members[name]
        members["scores"] = {"mean_iou": 0.25}
        write_scores(folder, members, names=("a", "b"), counts={"mean_iou": counts})


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "is missing"), ("changed", "is not the file that results.json names"), ("link", "a link"),
        ("another score", "gives mean_iou 0.5, results.json has 0.25"), ("not finite", "are no counts by image"),
        ("negative", "are no counts by image"), ("shapes", "are no counts by image"),
        ("names", "are no counts by image"),
    ],
)  # fmt: skip
def test_a_score_stays_where_its_counts_are_damaged(write: Write, tmp_path: Path, kind: str, said: str) -> None:
    write("a")
    damaged(kind, tmp_path / "a")
    table = table_of(tmp_path)
    (cell,) = table.cells.values()
    assert cell.spread.mean is not None
    assert cell.interval is None
    (remark,) = table.remarks
    assert remark.startswith("[1] ours: no interval: ")
    assert said in remark


def test_seeds_of_other_images_have_no_interval(write: Write, tmp_path: Path) -> None:
    write("a", seed=0)
    write("b", seed=1, names=tuple("vwxyz"))
    table = table_of(tmp_path)
    (cell,) = table.cells.values()
    assert (cell.spread.n, cell.interval) == (2, None)
    assert "is of other images than that of another seed" in table.remarks[0]


def test_damaged_results_are_named_counted_and_left_out(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a")
    for name, text in (("cut", '{"format": "r2o.sc'), ("list", "[]"), ("deep", "[" * 200_000), ("foreign", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(text)
    changed = tmp_path / "changed"
    write("changed")
    (changed / "results.json").write_text((changed / "results.json").read_text().replace("resnet18", "resnet50"))
    table = table_of(tmp_path)
    assert len(table.cells) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all(line.startswith(f"r2o: left out: {tmp_path}") for line in said)
    assert table.remarks[0].startswith("5 files of results could not be read and are left out: ")
    with pytest.raises(InputError, match=r"no results at or below .*cut; 1 files of results could not be read"):
        table_of(tmp_path / "cut")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no results at or below .*empty$"):
        table_of(tmp_path / "empty")
