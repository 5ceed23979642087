"""The four runs of the part `learn`: what differs between them, how long they take, and how their scores are read."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.scores import ImageCounts
from pipeline.foundation.exit_codes import EXIT_REQUEUE
from preprocess.config import ShardSettings
from tests.gpu import frozen, learn, runs, telling
from tests.gpu.learn import figures_of
from tests.gpu.methods import METHODS, settings_of
from tests.gpu.pace import epochs_of_equal_seconds
from tests.gpu.summary import Line, failures, read_results
from tests.train.conftest import write_images, write_shards
from train.config.pretrain import PretrainSettings

NETTE = 7936  # images of an epoch: 62 batches of 128


def test_the_methods_differ_in_nothing_but_the_method() -> None:
    made = {name: settings_of(name, 16) for name in METHODS}
    shared = {
        (s.model, s.optim, s.augment, s.epochs, s.global_batch_size, s.seed, s.data.image_size, s.data.view_size,
         s.run)
        for s in made.values()
    }  # fmt: skip
    assert len(shared) == 1
    r2o, byol, detcon, fixed = (made[name] for name in ("r2o", "byol", "detcon_b", "fixed_k4"))
    assert [r2o.num_clusters(epoch) for epoch in (0, 1, 8, 15)] == [32, 32, 24, 6]
    assert {fixed.num_clusters(epoch) for epoch in range(16)} == {4}
    assert (byol.refine.clustering, byol.refine.regions, byol.objective.loss) == ("none", "image", "byol")
    assert (detcon.refine.clustering, detcon.objective.loss) == ("none", "detcon_b")
    assert detcon.objective.view_masks == "superpixels"
    assert (r2o.refine, r2o.objective) == (fixed.refine, fixed.objective)
    assert r2o.refine.clustering == "kmeans"


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_runs_of_any_length_can_be_begun(epochs: int) -> None:
    for name in METHODS:
        assert settings_of(name, epochs).epochs == epochs


@pytest.mark.parametrize("seconds", [5.0, 17.0, 30.0, 300.0])
def test_epochs_take_nearly_the_same_seconds_and_no_longer_than_there_are(seconds: float) -> None:
    rates = {"r2o": 2600.0, "byol": 3100.0, "detcon_b": 2900.0, "fixed_k4": 2700.0}
    epochs = epochs_of_equal_seconds(rates, images=NETTE, seconds=seconds)
    taken = {name: epochs[name] * NETTE / rate for name, rate in rates.items()}
    one = NETTE / min(rates.values())
    assert max(taken.values()) - min(taken.values()) <= one  # what an epoch takes
    assert all(0.85 * seconds - one / 2 <= time <= max(seconds + one / 2, one) for time in taken.values())


def test_of_equal_choices_the_longest_is_taken() -> None:
    assert epochs_of_equal_seconds({"a": 1000.0, "b": 2000.0}, images=1000, seconds=20.0) == {"a": 20, "b": 40}
    assert epochs_of_equal_seconds({"a": 10.0, "b": 20.0}, images=1000, seconds=3.0) == {"a": 1, "b": 1}


def test_the_seconds_of_a_run_are_those_of_its_records() -> None:
    log = [{"step": 9, "images_per_second": 100.0}, {"step": 19, "images_per_second": 50.0},
           {"step": 24, "images_per_second": 80.0}]  # fmt: skip
    found = figures_of([{**line, "loss": 1.0, "prediction_std": 0.5} for line in log], batch=20)
    assert (found["steps"], found["images"], found["images_s"]) == (25, 500, 80.0)
    assert found["training_s"] == round(200 / 100 + 200 / 50 + 100 / 80, 1)
    assert figures_of([], batch=20) == {}


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that end as `codes` says, without any work; the methods and weights that were asked for."""
    asked: list[str] = []
    (tmp_path / "runs").mkdir()
    for module in (learn, telling):
        monkeypatch.setattr(module, "OUT", tmp_path)
    for module in (learn, runs):
        monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(frozen, "OUT", tmp_path / "scores")
    monkeypatch.setattr(learn, "UNTIL", time.monotonic() + 100)
    monkeypatch.setattr(learn, "shards", lambda name: tmp_path / name)
    monkeypatch.setattr(learn, "images_a_second", lambda settings, where: 1000.0)
    monkeypatch.setattr(learn, "images_of_an_epoch", lambda settings, where: 8000)
    monkeypatch.setattr(frozen, "annotated", lambda where: ([where], "note"))
    monkeypatch.setattr(frozen, "score_weights", lambda weights, *_, **__: asked.append(Path(weights).name))
    return asked


def results_in(folder: Path) -> list[Line]:
    return read_results((folder / "results.jsonl").read_text())


def test_a_run_that_fails_is_told_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    def main(arguments: list[str]) -> int:
        if arguments[1].endswith("byol"):
            raise ValueError("no such thing")
        return 3 if arguments[1].endswith("detcon_b") else 0

    monkeypatch.setattr(learn.trainer, "main", main)
    learn.main()
    told = {line["method"]: line for line in results_in(tmp_path) if "method" in line}
    assert {name: line["ok"] for name, line in told.items()} == {
        "r2o": True,
        "byol": False,
        "detcon_b": False,
        "fixed_k4": True,
    }
    assert told["byol"]["error"] == "ValueError: no such thing"
    assert asked_for == ["random-bn", "r2o", "fixed_k4"]
    assert (tmp_path / "learn.tgz").exists()


def test_a_run_that_was_asked_to_end_is_the_last_and_has_not_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    def main(arguments: list[str]) -> int:
        return EXIT_REQUEUE if arguments[1].endswith("byol") else 0

    monkeypatch.setattr(learn.trainer, "main", main)
    learn.main()
    lines = results_in(tmp_path)
    assert [(line["method"], line["exit"]) for line in lines if "method" in line] == [
        ("r2o", 0),
        ("byol", EXIT_REQUEUE),
    ]
    assert failures(lines) == []
    assert asked_for == ["random-bn", "r2o"]
    assert lines[-1]["what"] == "asked to end"
    assert (tmp_path / "learn.tgz").exists()


def test_a_run_that_was_asked_to_end_in_its_last_step_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    def main(arguments: list[str]) -> int:
        monkeypatch.setattr(learn, "UNTIL", time.monotonic())
        return 0

    monkeypatch.setattr(learn.trainer, "main", main)
    learn.main()
    lines = results_in(tmp_path)
    assert [line["method"] for line in lines if "method" in line] == ["r2o"]
    assert asked_for == ["random-bn"]
    assert lines[-1]["what"] == "asked to end"


def test_methods_that_can_not_be_timed_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    def rate(settings: PretrainSettings, where: Path) -> float:
        if settings.objective.loss == "detcon_b":
            raise RuntimeError("no kernel")
        return 1000.0

    monkeypatch.setattr(learn, "images_a_second", rate)
    monkeypatch.setattr(learn.trainer, "main", lambda arguments: 0)
    monkeypatch.setattr(learn, "UNTIL", time.monotonic() + 8 + 3 * (6 + 80))
    learn.main()
    lines = results_in(tmp_path)
    assert failures(lines) == [": pace of detcon_b"]
    assert asked_for == ["random-bn", "r2o", "byol", "fixed_k4"]
    (plan,) = (line for line in lines if line["what"] == "epochs of equal seconds")
    assert plan["epochs"] == {"r2o": 10, "byol": 10, "fixed_k4": 10}  # of 8 s each


def test_a_score_and_a_difference_have_the_interval_of_what_they_are() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(400) < 0.7).astype(float)
    ours, ones = ImageCounts("mean", right, np.ones(400)), np.ones(400)
    value, low, high = frozen._with_interval(ours)
    spread = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)  # of a share, by the normal law
    assert value == pytest.approx(right.mean(), abs=1e-4)
    np.testing.assert_allclose([value - low, high - value], spread, rtol=0.1)
    theirs = ImageCounts("mean", np.where(np.arange(400) < 40, 0.0, right), ones)  # no better on any image
    value, low, high = frozen._with_interval(ours, theirs)
    assert value == pytest.approx(right[:40].sum() / 400, abs=1e-4)
    assert 0 < low < value < high < 0.11
    assert frozen._with_interval(ours, ours) == [0, 0, 0]


def test_the_images_of_shards_become_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=24)
    settings = ShardSettings.model_validate({"images_per_shard": 10, "superpixels": {"size": 64, "segments": 25}})
    write_shards(tmp_path / "images", tmp_path / "shards", settings)
    assert frozen.unpack(tmp_path / "shards", tmp_path / "out") == 24
    made = {path.relative_to(tmp_path / "out").parent.as_posix() for path in (tmp_path / "out").rglob("*.jpg")}
    assert made == {"train/class0", "train/class1", "val/class0", "val/class1"}
    for name in ("class0", "class1"):
        original = {path.read_bytes() for path in (tmp_path / "images" / name).glob("*.jpg")}
        split = [{p.read_bytes() for p in (tmp_path / "out" / part / name).iterdir()} for part in ("train", "val")]
        assert split[0] | split[1] == original
        assert [len(part) for part in split] == [9, 3]
