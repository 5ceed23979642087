"""What `r2o run` says at its end, against NumPy."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.foundation.errors import InputError
from pipeline.report.one_run import FineTuningBudget, RunFindings, findings_of_run
from pipeline.report.report import run_report
from pipeline.report.shown.one_run_blocks import fine_tuning_shows
from tests.pipeline.report.made_results import iou_counts, write_fine_tuned, write_frozen, write_run

RESAMPLES = 300
IMAGES = 40
RANDOM = ("random", "random-bn")


def counts_of(seed: int, *, share: float) -> ImageCounts:
    """Of 40 images and three classes; `share` of each union is right, more or less."""
    rng = np.random.default_rng(seed)
    union = rng.integers(20, 50, (IMAGES, 3)).astype(float)
    return ImageCounts("iou", np.floor(union * np.clip(share + rng.normal(0, 0.1, union.shape), 0, 1)), union)


def means_of(seed: int, share: float) -> ImageCounts:
    return ImageCounts("mean", np.random.default_rng(seed).random(IMAGES) * share, np.ones(IMAGES))


def by_numpy(ours: list[ImageCounts], theirs: list[ImageCounts]) -> tuple[float, float, float]:
    """The oracle: difference of mean mIoUs, and its paired percentile interval, by drawing images in a loop."""

    def miou(seeds: list[ImageCounts], drawn: np.ndarray) -> float:
        return float(np.mean([np.mean(one.value[drawn].sum(0) / one.weight[drawn].sum(0)) for one in seeds]))

    rng = np.random.default_rng(0)
    draws = rng.integers(0, IMAGES, (RESAMPLES, IMAGES))
    found = [miou(ours, drawn) - miou(theirs, drawn) for drawn in draws]
    everything = np.arange(IMAGES)
    return (miou(ours, everything) - miou(theirs, everything), *np.percentile(found, [2.5, 97.5]))  # type: ignore[return-value]


def found_in(markers: list[Path]) -> RunFindings:
    found = findings_of_run(markers, resamples=RESAMPLES)
    assert found is not None
    return found


LINEAR = {
    "mine": [counts_of(1, share=0.5), counts_of(2, share=0.5)],
    "random": [counts_of(3, share=0.3), counts_of(4, share=0.3)],
    "random-bn": [counts_of(5, share=0.49), counts_of(6, share=0.49)],
}
ABO = {"mine": means_of(1, 0.8), "random": means_of(2, 0.6), "random-bn": means_of(3, 0.4)}
LINES = {
    "slic_prior": means_of(4, 0.5), "random_of_equal_k": means_of(5, 0.3),
    "grid_of_equal_k": means_of(6, 0.4), "ceiling_of_grid": means_of(7, 1.0),
}  # fmt: skip
FINE_TUNED = {"run": 0.25, "random": 0.5, "random-bn": 0.125}


@pytest.fixture
def markers(tmp_path: Path) -> list[Path]:
    return write_run(tmp_path / "mine", LINEAR, abo=ABO, references=LINES, fine_tuned=FINE_TUNED)


def numbers(line: str) -> list[float]:
    return [float(one) for one in re.findall(r"(?<![\w-])[+-]?\d+\.\d+", line)]


def test_paired_differences_are_those_of_numpy(markers: list[Path]) -> None:
    found = found_in(markers)
    rows = [row.shown for row in found.table.rows]
    assert [(rows[one.ours], rows[one.theirs]) for one in found.over_random] == [("mine", name) for name in RANDOM]
    for one in found.over_random:
        difference, low, high = by_numpy(LINEAR["mine"], LINEAR[rows[one.theirs]])
        assert one.difference == pytest.approx(difference, abs=1e-12)
        assert one.interval == pytest.approx((low, high), abs=1e-12)
    assert found.not_beaten == ["random-bn"]


def test_the_table_and_its_lines_say_what_was_measured(markers: list[Path]) -> None:
    lines = run_report(markers, resamples=RESAMPLES).splitlines()
    assert lines[1].split("  ")[0] == "weights"
    assert [one.strip() for one in re.split("  +", lines[1])] == [
        "weights", "linear segmentation", "ABO", "fine-tuned",
    ]  # fmt: skip
    assert lines[2].split() == ["mIoU", "K", "=", "4", "mIoU"]
    for line, label in zip(lines[4:7], LINEAR, strict=True):
        scores = [100 * float(score_of(one)) for one in LINEAR[label]]  # type: ignore[arg-type]
        abo = 100 * float(score_of(ABO[label]))  # type: ignore[arg-type]
        tuned = 100 * FINE_TUNED["run" if label == "mine" else label]
        expected = [np.mean(scores), np.std(scores, ddof=1), abo, tuned]
        assert numbers(line) == pytest.approx(expected, abs=0.0051)
        assert line.startswith("the run " if label == "mine" else f"{label} ")
    titles = ("SLIC prior", "random parts of equal K", "grid of equal K", "ceiling of the grid")
    for line, title, one in zip(lines[7:11], titles, LINES.values(), strict=True):
        assert line.startswith(f"{title} ")
        assert numbers(line) == pytest.approx([100 * float(score_of(one))], abs=0.0051)  # type: ignore[arg-type]
    (paired,) = (place for place, line in enumerate(lines) if line.startswith("Linear segmentation, paired"))
    assert f"the same {IMAGES} images; percentage points, 95% interval" in lines[paired]
    for line, label in zip(lines[paired + 1 :], RANDOM, strict=False):
        assert line.startswith(f"the run − {label}: ")
        expected = [100 * one for one in by_numpy(LINEAR["mine"], LINEAR[label])]
        assert numbers(line.partition(": ")[2]) == pytest.approx(expected, abs=0.0051)
    assert lines[paired + 3].startswith("It is not shown that the run beats random-bn in linear segmentation: ")
    assert "300 iterations of 8 crops from 12 images" in lines[paired + 5]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.9, "In linear segmentation the run beats random and random-bn: the interval lies above 0."),
        (0.3, "It is not shown that the run beats random and random-bn in linear segmentation: "),
        (0.1, "It is not shown that the run beats random and random-bn in linear segmentation: "),
    ],
)
def test_the_verdict_is_computed(tmp_path: Path, share: float, said: str) -> None:
    scored = {"mine": [counts_of(1, share=share)], **{name: [counts_of(3, share=0.3)] for name in RANDOM}}
    assert f"\n{said}" in run_report(write_run(tmp_path / "mine", scored), resamples=RESAMPLES)


def test_equal_scores_beat_nothing(tmp_path: Path) -> None:
    scored = {name: [counts_of(1, share=0.5)] for name in ("mine", "random")}
    found = found_in(write_run(tmp_path / "mine", scored))
    assert found.not_beaten == ["random"]
    assert found.over_random[0].interval == (0, 0)


def test_results_that_the_summary_does_not_name_are_left_out(markers: list[Path], tmp_path: Path) -> None:
    """A seed of a former call stays beside the present ones."""
    before = run_report(markers, resamples=RESAMPLES)
    stale = tmp_path / "mine" / "eval-frozen" / "small" / "mine" / "linear" / "seed7"
    write_frozen(stale, label="mine", seed=7, counts=counts_of(9, share=0.9), protocol="linear")
    assert run_report(markers, resamples=RESAMPLES) == before


def test_what_was_not_scored_is_not_spoken_of(tmp_path: Path) -> None:
    assert run_report([], resamples=RESAMPLES) == ""
    only_frozen = run_report(write_run(tmp_path / "a", {"a": LINEAR["mine"]}), resamples=RESAMPLES)
    assert "Fine-tuning" not in only_frozen
    assert "beats" not in only_frozen
    assert "ABO" not in only_frozen
    only_tuned = run_report(write_run(tmp_path / "b", {}, fine_tuned=FINE_TUNED), resamples=RESAMPLES)
    assert numbers(only_tuned.splitlines()[4]) == [25]
    assert "Fine-tuning trained every weight" in only_tuned
    assert "beats" not in only_tuned
    knn = tmp_path / "c" / "eval-frozen"
    write_frozen(knn / "x", label="c", counts=iou_counts(0))
    shutil.copy(tmp_path / "a" / "eval-frozen" / "summary.json", knn)
    assert run_report([knn / "summary.json"], resamples=RESAMPLES) == ""


def test_without_counts_by_image_nothing_is_shown_to_be_beaten(markers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "mine" / "eval-frozen" / "small" / "random" / "linear" / "seed0" / "per_image.npz").unlink()
    found = found_in(markers)
    assert found.not_beaten == ["random", "random-bn"]
    assert "the run − random: no interval (no counts by image)" in run_report(markers, resamples=RESAMPLES)


def test_a_damaged_summary_is_one_line(markers: list[Path]) -> None:
    summary = markers[-1]
    members = json.loads(summary.read_bytes())
    for damaged in ({**members, "rows": []}, {"rows": members["rows"]}, {}):
        summary.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"summary\.json is damaged; move it away and run the same command again"):
            findings_of_run(markers, resamples=9)


def test_a_long_fine_tuning_is_not_said_to_measure_itself(tmp_path: Path) -> None:
    short = fine_tuning_shows(FineTuningBudget(300, 8, 96))
    assert "frozen features are the measure of pretraining" in short
    long = fine_tuning_shows(FineTuningBudget(30_000, 16, 10_582))
    assert "frozen features" not in long
    assert "30,000 iterations of 16 crops from 10,582 images" in long
    path = write_fine_tuned(tmp_path / "eval-voc" / "results.json", {"run": {0: 0.5}}, protocol={"iterations": "many"})
    assert found_in([path]).budget is None
