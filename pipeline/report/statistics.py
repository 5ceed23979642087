"""Spread over seeds, and what another draw of images would have given: bootstrap intervals and paired comparisons.

The bootstrap draws as many images as there are, with replacement, and aggregates the counts of those drawn by the rule
of `score_of`. All seeds and all weights see the same draws, so that they can be compared image by image (Efron and
Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from pipeline.artifacts.results import Spread
from pipeline.artifacts.scores import ImageCounts

BOOTSTRAP_SEED = 0
INTERVAL_LEVEL = 0.95
MOST_KEPT = 2**24  # numbers of a matrix of draws that is kept (128 MB); a larger one is drawn again a part at a time


class Interval(NamedTuple):
    """Bounds of a percentile interval."""

    low: float
    high: float


def spread_of(values: Sequence[float | None]) -> Spread:
    """Mean, sample standard deviation (n − 1; None below two) and number of the values that are not None."""
    found = [value for value in values if value is not None]
    mean = float(np.mean(found)) if found else None
    return Spread(mean, float(np.std(found, ddof=1)) if len(found) > 1 else None, len(found))


class Draws:
    """How often each image is drawn in each resample: the same for equal numbers, wherever they are asked for."""

    def __init__(self, *, images: int, resamples: int) -> None:
        """Prepare the draws.

        Args:
            images: how many there are, above 0; so many are drawn in each resample.
            resamples: above 0.
        """
        self.images, self.resamples = images, resamples
        self._kept = list(self._draw()) if images * resamples <= MOST_KEPT else None

    def parts(self) -> Iterator[Float64[np.ndarray, "part images"]]:
        """The counts, some resamples at a time; each row sums to the number of images."""
        yield from self._kept or self._draw()

    def _draw(self) -> Iterator[Float64[np.ndarray, "part images"]]:
        rng, n = np.random.default_rng(BOOTSTRAP_SEED), self.images
        at_once = max(1, min(self.resamples, MOST_KEPT // (8 * n)))
        for first in range(0, self.resamples, at_once):
            rows = min(at_once, self.resamples - first)
            drawn = rng.integers(0, n, (rows, n))
            drawn += n * np.arange(rows)[:, None]
            yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def resampled_scores(
    counts: ImageCounts, draws: Float64[np.ndarray, "resamples images"]
) -> Float64[np.ndarray, " resamples"]:
    """`score_of` the drawn images, of every resample; NaN where no weight is left."""
    images = len(counts.value)
    value, weight = (draws @ one.reshape(images, -1) for one in (counts.value, counts.weight))
    counted = weight > 0
    ratio = np.divide(value, weight, out=np.zeros_like(value), where=counted)
    classes = counted.sum(1)
    scores: np.ndarray = np.divide(ratio.sum(1), classes, out=np.full(len(draws), np.nan), where=classes > 0)
    return scores


def resampled_means(seeds: Sequence[ImageCounts], draws: Draws) -> Float64[np.ndarray, " resamples"]:
    """The mean over seeds of each seed's score on the same drawn images; NaN where one of them has none."""
    parts = [np.mean([resampled_scores(counts, part) for counts in seeds], axis=0) for part in draws.parts()]
    return np.concatenate(parts)


def percentile_interval(values: Float64[np.ndarray, " resamples"]) -> Interval | None:
    """Bounds that leave 2.5 % of the resamples on either side. Resamples without a score (NaN) are left out."""
    found = values[~np.isnan(values)]
    if not found.size:
        return None
    tail = 50 * (1 - INTERVAL_LEVEL)
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(float(low), float(high))


def share_above(ours: Float64[np.ndarray, " resamples"], theirs: Float64[np.ndarray, " resamples"]) -> float | None:
    """Share of the resamples in which `ours` is above `theirs`, ties counted half: 0.5 for a thing and itself."""
    both = ~np.isnan(ours) & ~np.isnan(theirs)
    if not both.any():
        return None
    return float(((ours > theirs)[both] + 0.5 * (ours == theirs)[both]).mean())
