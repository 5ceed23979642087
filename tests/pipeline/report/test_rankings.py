"""Kendall's τ against SciPy's, its interval against resamples done one by one, and what is told of too few weights."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.cli import main
from pipeline.foundation.errors import InputError
from pipeline.report.rankings import kendall_tau, rankings_against
from pipeline.report.report import read_table
from pipeline.report.statistics import Draws
from tests.pipeline.report.made_results import Write, iou_counts, write_fine_tuned

LABELS = ("one", "two", "three", "four", "five")


def test_tau_is_scipy_s_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        ours, theirs = rng.integers(0, 4, (2, 6)).astype(float)
        expected = kendalltau(ours, theirs).statistic
        found = kendall_tau(ours, theirs)
        assert (found is None) == bool(np.isnan(expected))
        assert found is None or found == pytest.approx(expected, abs=1e-12)


def test_every_column_is_held_against_the_one_of_most_weights(write: Write, tmp_path: Path) -> None:
    counts = {
        protocol: [write(f"{protocol}-{label}", label=label, protocol=protocol, counts=iou_counts(10 * p + number))
                   for number, label in enumerate(LABELS)]
        for p, protocol in enumerate(("linear", "context"))
    }  # fmt: skip
    write("smaller", label="one", protocol="context", settings={"size": 96})
    write("few", label="two", protocol="overclustering", seed=0)
    table = read_table([tmp_path], scores=(), resamples=30)
    found = rankings_against(table, "context")
    assert table.columns[found.reference].first.name == "context"
    assert len(table.columns[found.reference].measurements) == len(LABELS)
    by_name = {table.columns[one.column].first.name: one for one in found.agreements if one.weights != 1}
    linear, context = ([score_of(one) for one in counts[name]] for name in ("linear", "context"))
    agreement = by_name["linear"]
    assert agreement.weights == len(LABELS)
    assert agreement.tau == pytest.approx(kendalltau(linear, context).statistic)
    taus = []
    for drawn in np.concatenate(list(Draws(images=5, resamples=30).parts())).astype(int):
        picked = np.repeat(np.arange(5), drawn)
        scores = [score_of(ImageCounts("iou", one.value[picked], one.weight[picked])) for one in counts["linear"]]
        if None not in scores:
            taus.append(kendalltau(scores, context).statistic)
    assert agreement.interval == pytest.approx(np.percentile(taus, [2.5, 97.5]))
    assert [(one.weights, one.tau) for one in found.agreements if one.weights == 1] == [(1, None), (1, None)]


def test_three_weights_have_no_tau_and_fine_tuning_is_a_reference(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("random", "random-bn"):
        write(label, label=label, batch_norm={"random": "initial", "random-bn": "data"}[label])
    write_fine_tuned(tmp_path / "voc" / "results.json", {"random": {0: 0.25}, "random-bn": {0: 0.5}})
    assert main(["results", str(tmp_path), "--rankings", "voc", "--bootstrap", "0"]) == 0
    text = capsys.readouterr().out
    assert "Kendall's τ of each ranking of the weights with that by [2] voc" in text
    assert "[1] knn mean_iou  2        –" in text
    assert "fewer than 4 weights" in text


def test_mistakes_are_one_line(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a", label="one")
    with pytest.raises(InputError, match="--rankings voc: these results have no such protocol; there are knn"):
        rankings_against(read_table([tmp_path], scores=(), resamples=0), "voc")
    assert main(["results", str(tmp_path), "--rankings", "knn", "--format", "csv"]) == 2
    assert "--rankings has no CSV; take --format text or markdown" in capsys.readouterr().err
