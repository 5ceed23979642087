"""Linear segmentation against the same steps by scikit-learn, and at its limits."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.protocols.labelled_scenes import blob_maps, blob_task, make_task, pure_maps, squared
from train.config.frozen import LinearSettings
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.protocols.linear import score

SETTINGS = LinearSettings(size=32, log10_c=(-4.0, 2.0), num_c=4)


def in_cells(square: np.ndarray, grid: int = 4) -> np.ndarray:
    """(cells, pixels)."""
    step = len(square) // grid
    return np.stack(
        [square[y * step : (y + 1) * step, x * step : (x + 1) * step].ravel() for y in range(grid) for x in range(grid)]
    )


def test_against_scikit_learn() -> None:
    task = blob_task(SETTINGS, noise=0.8)
    found = score(task)
    parts = {}
    for part in ("train", "val"):
        features = task.features(part, "c5", 32)
        labels = np.stack([in_cells(squared(labels, size=32)) for labels in features.images.maps])
        parts[part] = (features.cells.reshape(len(labels), 16, -1).astype(np.float64), labels)
    features, labels = parts["train"]
    order = np.random.default_rng(0).permutation(24)
    chosen_by, fitted = order[:2], order[2:]
    scaler = StandardScaler().fit(features[fitted].reshape(-1, 8))

    def fit(images: np.ndarray, c: float) -> LogisticRegression:
        modes = np.array([[np.bincount(cell).argmax() for cell in image] for image in labels[images]])
        rows = scaler.transform(features[images].reshape(-1, 8))
        counted = modes.ravel() != UNLABELLED
        return LogisticRegression(C=c, tol=1e-9, max_iter=10000).fit(rows[counted], modes.ravel()[counted])

    def judged(model: LogisticRegression, rows: np.ndarray, truth: np.ndarray) -> float:
        predicted = model.predict(scaler.transform(rows.reshape(-1, 8)))[:, None].repeat(64, 1).ravel()
        seen = truth.ravel() != UNLABELLED
        return float(jaccard_score(truth.ravel()[seen], predicted[seen], average="macro"))

    cs = 10 ** np.linspace(-4, 2, 4)
    tried = [judged(fit(fitted, c), features[chosen_by], labels[chosen_by]) for c in cs]
    assert list(found.chosen["mean_iou_by_c"].values()) == pytest.approx(tried, abs=1e-9)
    best = cs[int(np.argmax(tried))]
    assert found.chosen["c"] == pytest.approx(best)
    assert found.scores["mean_iou"] == pytest.approx(judged(fit(order, best), *parts["val"]), abs=1e-9)
    assert 0.3 < found.scores["mean_iou"] < 0.9
    assert score_of(found.per_image["mean_iou"]) == found.scores["mean_iou"]
    assert score_of(found.per_image["pixel_accuracy"]) == found.scores["pixel_accuracy"]
    assert found.per_image["mean_iou"].weight[3].sum() == 0  # the image without labels
    assert set(task.clock.seconds) == {"labels", "standardise", "choose", "fit", "predict", "score"}


def test_predictions_are_shown_and_scored_at_the_size_of_the_annotation() -> None:
    task = blob_task(SETTINGS)
    found = score(task)
    assert found.predict is not None
    truth = task.data.val.maps  # type: ignore[attr-defined]
    predicted = [found.predict(i) for i in range(6)]
    assert [p.shape for p in predicted] == [t.shape for t in truth]
    seen = np.concatenate([t.ravel() for t in truth]) != UNLABELLED
    both = (np.concatenate([m.ravel() for m in maps])[seen] for maps in (truth, predicted))
    assert found.scores["mean_iou_full"] == pytest.approx(jaccard_score(*both, average="macro"), abs=1e-12)


def test_truth_fed_back_gives_one() -> None:
    parts = {}
    for part, count in (("train", 12), ("val", 5)):
        cells, maps = pure_maps(count, grid=4, shape=(24, 40), classes=5, seed=count)
        parts[part] = (maps, np.eye(5, dtype=np.float16)[cells])
    found = score(make_task(SETTINGS, parts, classes=6))  # class 5 occurs nowhere
    assert found.scores == {"mean_iou": 1, "pixel_accuracy": 1, "mean_iou_full": 1}
    assert found.per_class["iou"] == {**{f"class {i}": 1 for i in range(5)}, "class 5": None}
    assert found.predict is not None
    np.testing.assert_array_equal(found.predict(2), parts["val"][0][2])


def test_features_that_tell_nothing_give_chance() -> None:
    parts = {}
    for part, count in (("train", 30), ("val", 20)):
        _, maps = pure_maps(count, grid=4, shape=(16, 16), classes=4, seed=count)
        noise = np.random.default_rng(count).standard_normal((count, 4, 4, 4))
        parts[part] = (maps, noise.astype(np.float16))
    found = score(make_task(SETTINGS, parts, classes=4))
    assert found.scores["pixel_accuracy"] == pytest.approx(1 / 4, abs=0.06)
    assert found.scores["mean_iou"] == pytest.approx(1 / 7, abs=0.06)  # (1/16) / (1/4 + 1/4 − 1/16)


def test_a_class_of_val_that_training_never_shows_scores_zero() -> None:
    cells, maps = pure_maps(12, grid=4, shape=(16, 16), classes=2, seed=0)
    seen = (maps, np.eye(3, dtype=np.float16)[cells])
    cells, maps = pure_maps(5, grid=4, shape=(16, 16), classes=3, seed=1)
    found = score(make_task(SETTINGS, {"train": seen, "val": (maps, np.eye(3, dtype=np.float16)[cells])}, classes=3))
    assert found.per_class["iou"]["class 2"] == 0


def test_one_value_of_c_is_not_chosen() -> None:
    found = score(blob_task(LinearSettings(size=32, log10_c=(0.0, 0.0), num_c=1)))
    assert (found.chosen["c"], found.chosen["mean_iou_by_c"]) == (1.0, {})


def test_what_cannot_be_fitted_is_named() -> None:
    features = np.zeros((3, 4, 4, 2), dtype=np.float16)
    maps = blob_maps(3, classes=3, seed=0)
    void = [np.full((9, 9), UNLABELLED, dtype=np.int16)] * 3
    val = (maps, features)
    with pytest.raises(InputError, match="train: 1 images; a part is set aside"):
        score(make_task(SETTINGS, {"train": (maps[:1], features[:1]), "val": val}, classes=3))
    with pytest.raises(InputError, match="train: no image but those set aside"):
        score(make_task(SETTINGS, {"train": (void, features), "val": val}, classes=3))
    with pytest.raises(InputError, match="size: 30 pixels do not divide into 4 × 4 cells"):
        score(make_task(LinearSettings(size=30), {"train": val, "val": val}, classes=3))
