"""Multinomial logistic regression with an L2 penalty, by L-BFGS in coordinates where it takes few steps.

Minimised is scikit-learn's objective over its C and the number of rows n:

    mean over rows of −log softmax(x W + b)[y]  +  |W|² / (2 C n)        (the bias is not penalised)

Features of a network are correlated, so plain L-BFGS takes hundreds of steps. Here W = U V, with the eigenvectors U of
the features' covariance, which leaves |W| as it is. In V the Hessian is nearly diagonal: for class c and eigenvalue s
it is near mean(p_c (1 − p_c)) s + 1 / (C n), and L-BFGS starts from that (Nocedal and Wright 2006, section 7.2).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from train.evals.frozen.numerics.rows import TILE_ROWS, Rows, row_tiles
from train.evals.frozen.threads import lone_threads

HISTORY = 10  # pairs of steps and changes of the gradient
FRAME_ROWS = 65536  # of which the covariance is estimated: any estimate gives the same minimum
LEAST_DECREASE, LEAST_FLATTENING = 1e-4, 0.9  # Wolfe's conditions
SEARCH_STEPS = 10
LEAST_LOG_SHARE = -60.0
# Of the objective: smaller differences are not told by sums of products.
ROUNDING = {torch.float32: 1e-8, torch.float64: 1e-15}


@dataclass(frozen=True, kw_only=True)
class Logistic:
    """A fitted model.

    Attributes:
        weights, bias: of x W + b.
        iterations: of L-BFGS.
        evaluations: passes over the rows.
        gradient: largest component of the objective's gradient by weights and bias, at the end.
        converged: false where the iterations were used up.
    """

    weights: Float64[Tensor, "width classes"]
    bias: Float64[Tensor, " classes"]
    objective: float
    iterations: int
    evaluations: int
    gradient: float
    converged: bool

    def predict(self, rows: Rows) -> Int64[Tensor, " rows"]:
        """The class with the greatest logit for each row."""
        return torch.cat(
            [
                torch.addmm(self.bias.to(tile.dtype), tile, self.weights.to(tile.dtype)).argmax(1)
                for _, tile in row_tiles(rows)
            ]
        )


class _Frame(NamedTuple):
    """Where the weights are searched: x W + b = (x − mean) U V + b'."""

    mean: Float64[Tensor, " width"]
    vectors: Float64[Tensor, "width width"]
    variances: Float64[Tensor, " width"]


class _Point(NamedTuple):
    """Objective and gradient by V (above) and b' (last row), and what is told of them."""

    place: Float64[Tensor, "width_and_one classes"]
    objective: float
    gradient: Float64[Tensor, "width_and_one classes"]
    largest: float
    spread: Float64[Tensor, " classes"]


class LogisticRegression:
    """Models of one set of rows for one C after the other, each begun where the last one ended.

    Args:
        rows: read once an evaluation: `keep_rows` them.
        targets: the class of each row, 0 … `num_classes` − 1; every class occurs.
    """

    def __init__(self, rows: Rows, targets: Int64[Tensor, " rows"], *, num_classes: int) -> None:
        assert 0 < len(rows) == len(targets), "a class for each row"
        self.rows, self.targets = rows, targets
        self.dtype = rows.read(0, 1).dtype
        self.rounding = ROUNDING[self.dtype]
        self.frame = _frame_of(self.rows)
        shares = targets.bincount(minlength=num_classes).double() / len(targets)
        assert len(shares) == num_classes, "classes below num_classes"
        assert bool((shares > 0).all()), "every class occurs"
        zero = shares.new_zeros(rows.width, num_classes)
        self.place = torch.cat([zero, shares.log()[None]])

    def fit(self, c: float, *, max_iterations: int, tolerance: float = 1e-5) -> Logistic:
        """The model for one C.

        Args:
            c: scikit-learn's C.
            max_iterations: of L-BFGS.
            tolerance: the end is where no component of the gradient is larger, as scikit-learn's `tol`, or where the
                next step promises less than `ROUNDING` of the objective. Rare classes that can be told apart make
                the end slow.
        """
        with lone_threads(self.targets.device) as self.each:
            return self._fit(1 / (c * len(self.rows)), max_iterations=max_iterations, tolerance=tolerance)

    def _fit(self, penalty: float, *, max_iterations: int, tolerance: float) -> Logistic:
        point = self._evaluate(self.place, penalty)
        curvature = torch.cat([torch.outer(self.frame.variances, point.spread) + penalty, point.spread[None]])
        steps = _Steps(1 / curvature.clamp_min(torch.finfo(torch.float32).tiny))
        iterations, evaluations, converged = 0, 1, False
        while not converged and iterations < max_iterations:
            direction = steps.direction(point.gradient)
            slope = float((point.gradient * direction).sum())
            converged = point.largest <= tolerance or -slope / 2 <= self.rounding * point.objective
            if not converged:
                new, tried = self._search(point, direction, slope, penalty)
                steps.add(new.place - point.place, new.gradient - point.gradient)
                point, iterations, evaluations = new, iterations + 1, evaluations + tried
        self.place = point.place
        weights, bias = self._as_weights(point.place)
        return Logistic(
            weights=weights,
            bias=bias,
            objective=point.objective,
            iterations=iterations,
            evaluations=evaluations,
            gradient=point.largest,
            converged=converged,
        )

    def _as_weights(self, place: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.frame.vectors @ place[:-1]
        return weights, place[-1] - self.frame.mean @ weights

    def _evaluate(self, place: Tensor, penalty: float) -> _Point:
        """One pass: products in the rows' precision, sums over tiles in float64."""
        weights, bias = self._as_weights(place)
        by_weights, by_bias, spread = torch.zeros_like(weights), torch.zeros_like(bias), torch.zeros_like(bias)
        loss = bias.new_zeros(())
        rounded, rounded_bias = weights.T.to(self.dtype).contiguous(), bias.to(self.dtype)

        def part_of(start: int) -> _Part:
            stop = min(start + TILE_ROWS, len(self.rows))
            return _part_of(self.rows.read(start, stop), rounded, rounded_bias, self.targets[start:stop])

        # In order, so that sums do not depend on the threads.
        for part in self.each(part_of, range(0, len(self.rows), TILE_ROWS)):
            loss += part.loss
            spread += part.spread
            by_weights += part.by_weights.T
            by_bias += part.by_bias
        n = len(self.rows)
        by_weights, by_bias = by_weights / n, by_bias / n
        by_place = self.frame.vectors.T @ (by_weights - torch.outer(self.frame.mean, by_bias)) + penalty * place[:-1]
        largest = torch.maximum((by_weights + penalty * weights).abs().max(), by_bias.abs().max())
        objective = loss / n + penalty / 2 * place[:-1].square().sum()
        return _Point(
            place, float(objective), torch.cat([by_place, by_bias[None]]), float(largest), (spread / n).clamp_min(0)
        )

    def _search(self, point: _Point, direction: Tensor, slope: float, penalty: float) -> tuple[_Point, int]:
        """The first step that meets Wolfe's conditions, by bisection (Lewis and Overton 2013); else the lowest."""
        slack = self.rounding * point.objective
        low, high, step = 0.0, float("inf"), 1.0
        lowest: _Point | None = None
        for tried in range(1, SEARCH_STEPS + 1):
            new = self._evaluate(point.place + step * direction, penalty)
            lowest = new if lowest is None or new.objective < lowest.objective else lowest
            if not new.objective <= point.objective + LEAST_DECREASE * step * slope + slack:
                high = step
            elif float((new.gradient * direction).sum()) < LEAST_FLATTENING * slope:
                low = step
            else:
                return new, tried
            step = (low + high) / 2 if high < float("inf") else 2 * low
        assert lowest is not None, "at least one step was tried"
        return lowest, SEARCH_STEPS


class _Steps:
    """The last steps, and the direction that they tell of (two loops, Nocedal and Wright 2006, algorithm 7.4)."""

    def __init__(self, inverse_curvature: Tensor) -> None:
        self.inverse_curvature = inverse_curvature
        self.pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=HISTORY)

    def add(self, step: Tensor, change: Tensor) -> None:
        """A step, and how the gradient changed with it; left out where rounding hides the curvature."""
        product = (step * change).sum()
        if float(product) > 0:
            self.pairs.append((step, change, product))

    def direction(self, gradient: Tensor) -> Tensor:
        """Downhill."""
        rest, shares = gradient.clone(), []
        for step, change, product in reversed(self.pairs):
            share = (step * rest).sum() / product
            rest -= share * change
            shares.append(share)
        rest *= self.inverse_curvature
        if self.pairs:
            _, change, product = self.pairs[-1]
            rest *= product / (change.square() * self.inverse_curvature).sum()
        for (step, change, product), share in zip(self.pairs, reversed(shares), strict=True):
            rest += (share - (change * rest).sum() / product) * step
        return -rest


class _Part(NamedTuple):
    """Sums over some rows: of the losses, their gradient, and p (1 − p)."""

    loss: Float64[Tensor, ""]
    by_weights: Float[Tensor, "classes width"]
    by_bias: Float64[Tensor, " classes"]
    spread: Float64[Tensor, " classes"]


def _part_of(
    rows: Float[Tensor, "n width"], weights: Float[Tensor, "classes width"], bias: Tensor, targets: Tensor
) -> _Part:
    log_shares = torch.addmm(bias[:, None], weights, rows.T).log_softmax(0)
    losses = log_shares.gather(0, targets[None])
    # Products of denormal numbers take ten times as long.
    errors = log_shares.clamp_min_(LEAST_LOG_SHARE).exp_()
    spread = errors.sum(1, dtype=torch.float64) - torch.linalg.vecdot(errors, errors).double()
    errors.scatter_add_(0, targets[None], errors.new_full((1, 1), -1).expand(1, len(rows)))
    return _Part(-losses.sum(dtype=torch.float64), errors @ rows, errors.sum(1, dtype=torch.float64), spread)


def _frame_of(rows: Rows) -> _Frame:
    """Mean, and eigenvectors of the covariance, of tiles that lie evenly over the rows."""
    stride = max(1, len(rows) // FRAME_ROWS)
    sample = [tile[::stride] for _, tile in row_tiles(rows)]
    count = sum(map(len, sample))
    mean = torch.stack([tile.sum(0, dtype=torch.float64) for tile in sample]).sum(0) / count
    squares = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=mean.device)
    for tile in sample:
        centred = tile - mean.to(tile.dtype)
        squares += centred.T @ centred
    variances, vectors = torch.linalg.eigh(squares / count)
    return _Frame(mean, vectors, variances.clamp_min(0))
