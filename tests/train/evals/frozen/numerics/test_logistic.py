"""Logistic regression against scikit-learn's, and against its own gradient by finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Oracle
from torch.nn import functional as F

from train.evals.frozen.numerics import logistic
from train.evals.frozen.numerics import rows as rows_module
from train.evals.frozen.numerics.logistic import Logistic, LogisticRegression
from train.evals.frozen.numerics.rows import TensorRows


def problem(*, n: int = 400, width: int = 12, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features with a mean, and classes that overlap, of unequal frequency."""
    rng = np.random.default_rng(seed)
    features = (
        rng.standard_normal((n, width)) @ (rng.standard_normal((width, width)) * rng.uniform(0.5, 1.5, width)) + 1
    )
    logits = features @ rng.standard_normal((width, classes)) * 0.3 + rng.standard_normal(classes)
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    targets[:classes] = range(classes)
    return features.astype(np.float32), targets


def fit(
    features: np.ndarray, targets: np.ndarray, cs: list[float], *, tolerance: float = 1e-8, dtype: type = np.float64
) -> list[Logistic]:
    rows = TensorRows(torch.from_numpy(features.astype(dtype)))
    regression = LogisticRegression(rows, torch.from_numpy(targets), num_classes=int(targets.max()) + 1)
    return [regression.fit(c, max_iterations=2000, tolerance=tolerance) for c in cs]


def objective_of(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, bias: np.ndarray, c: float) -> float:
    logits = torch.from_numpy(features.astype(np.float64) @ weights + bias)
    loss = F.cross_entropy(logits, torch.from_numpy(targets))
    return float(loss) + float((weights**2).sum()) / (2 * c * len(targets))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "TILE_ROWS", 128)
    monkeypatch.setattr(logistic, "TILE_ROWS", 128)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 30.0])
def test_against_scikit_learn(c: float) -> None:
    features, targets = problem()
    oracle = Oracle(C=c, tol=1e-9, max_iter=20000).fit(features.astype(np.float64), targets)
    (found,) = fit(features, targets, [c])
    weights, bias = oracle.coef_.T, oracle.intercept_
    expected = objective_of(features, targets, weights, bias, c)
    assert found.converged
    assert found.gradient <= 2e-7
    assert found.objective == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(found.weights.numpy(), weights, atol=1e-4 * np.abs(weights).max())
    # A constant on all biases changes nothing.
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias - bias.mean(), atol=1e-4 * np.abs(bias).max())
    predicted = found.predict(TensorRows(torch.from_numpy(features))).numpy()
    assert (predicted == oracle.predict(features)).mean() >= 0.995


@pytest.mark.parametrize("c", [1e-4, 1.0, 30.0])
def test_float32_ends_near_the_minimum(c: float) -> None:
    """At the tolerance that protocols use: the objective to five digits, and nearly all predictions."""
    features, targets = problem()
    (exact,) = fit(features, targets, [c])
    (found,) = fit(features, targets, [c], tolerance=1e-5, dtype=np.float32)
    assert found.converged
    assert found.objective == pytest.approx(exact.objective, rel=2e-5)
    weights, bias = found.weights.numpy(), found.bias.numpy()
    assert objective_of(features, targets, weights, bias, c) == pytest.approx(found.objective, rel=1e-6)
    rows = TensorRows(torch.from_numpy(features))
    assert (found.predict(rows) == exact.predict(rows)).double().mean() >= 0.99


def test_a_path_ends_where_single_fits_do() -> None:
    features, targets = problem(seed=1)
    cs = [1e-3, 1e-1, 10.0]
    path = fit(features, targets, cs)
    for c, along in zip(cs, path, strict=True):
        (alone,) = fit(features, targets, [c])
        assert along.objective == pytest.approx(alone.objective, rel=1e-10)
        np.testing.assert_allclose(along.weights.numpy(), alone.weights.numpy(), atol=1e-4)
    assert path[0].objective > path[1].objective > path[2].objective


def test_correlated_features_take_few_steps() -> None:
    """A covariance of condition 1e4, which takes plain L-BFGS several times the steps."""
    rng = np.random.default_rng(3)
    directions, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    scales = np.logspace(0, -2, 16)
    features = (rng.standard_normal((600, 16)) * scales) @ directions * 3
    logits = features @ directions.T @ (rng.standard_normal((16, 3)) / scales[:, None])
    targets = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    (found,) = fit(features, targets, [1e2], tolerance=1e-6)
    oracle = Oracle(C=1e2, tol=1e-6, max_iter=20000).fit(features, targets)
    assert found.converged
    assert found.iterations * 3 < oracle.n_iter_[0]
    assert found.evaluations <= 2 * found.iterations + 2


def test_threads_change_nothing() -> None:
    features, targets = problem(n=1000)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(fit(features, targets, [0.1], tolerance=1e-5, dtype=np.float32)[0])
        torch.set_num_threads(before)
    assert found[0].iterations == found[1].iterations
    assert torch.equal(found[0].weights, found[1].weights)


def test_separable_classes_stop_at_the_limit_or_converge_and_are_told_apart() -> None:
    features = np.repeat(np.eye(3, dtype=np.float32), 20, axis=0) * 5
    targets = np.repeat(np.arange(3), 20)
    regression = LogisticRegression(TensorRows(torch.from_numpy(features)), torch.from_numpy(targets), num_classes=3)
    short = regression.fit(1e5, max_iterations=1, tolerance=1e-12)
    assert (short.iterations, short.converged) == (1, False)
    found = regression.fit(1e5, max_iterations=500, tolerance=1e-6)
    assert found.converged
    assert found.predict(TensorRows(torch.from_numpy(features))).tolist() == targets.tolist()


def test_one_class_needs_no_step() -> None:
    features = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    (found,) = fit(features, np.zeros(10, dtype=np.int64), [1.0])
    assert (found.iterations, found.objective, found.converged) == (0, 0.0, True)
    assert found.predict(TensorRows(torch.from_numpy(features))).tolist() == [0] * 10


def test_constant_features_change_nothing() -> None:
    features, targets = problem(seed=2)
    (plain,) = fit(features, targets, [1.0])
    (padded,) = fit(np.concatenate([features, np.full((len(features), 2), 7, np.float32)], 1), targets, [1.0])
    assert padded.objective == pytest.approx(plain.objective, rel=1e-10)
    np.testing.assert_allclose(padded.weights[-2:], 0, atol=1e-6)
