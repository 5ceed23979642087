"""Spread by hand; the bootstrap against loops, and against all resamples where they can be counted."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from pipeline.artifacts.scores import ImageCounts, score_of
from pipeline.report import statistics
from pipeline.report.statistics import (
    Draws,
    percentile_interval,
    resampled_means,
    resampled_scores,
    share_above,
    spread_of,
)


def drawn_score(counts: ImageCounts, images: list[int]) -> float:
    """The oracle: `score_of` the images drawn, one row for each draw of an image."""
    found = score_of(ImageCounts(counts.kind, counts.value[images], counts.weight[images]))
    return float("nan") if found is None else found


def every_resample(images: int) -> tuple[list[list[int]], np.ndarray]:
    """All n ** n ordered draws, and how often each image is in them."""
    draws = [list(one) for one in itertools.product(range(images), repeat=images)]
    return draws, np.array([np.bincount(one, minlength=images) for one in draws], float)


MEAN = ImageCounts("mean", np.array([0.2, 0.9, 0.0]), np.array([1.0, 2.0, 0.0]))  # the third image has no object
IOU = ImageCounts("iou", np.array([[3.0, 0, 0], [1, 2, 0], [0, 1, 0]]), np.array([[4.0, 0, 0], [5, 4, 0], [0, 3, 0]]))


@pytest.mark.parametrize("counts", [MEAN, IOU], ids=["mean", "iou"])
def test_every_resample_is_scored_as_the_images_drawn(counts: ImageCounts) -> None:
    draws, matrix = every_resample(3)
    assert len(draws) == 27
    expected = [drawn_score(counts, images) for images in draws]
    np.testing.assert_allclose(resampled_scores(counts, matrix), expected, rtol=1e-12)
    assert np.isnan(expected).sum() == (1 if counts is MEAN else 0)  # three times the image without an object


def test_interval_is_that_of_all_resamples() -> None:
    """Drawn 200,000 times, each of the 27 has its due share: the bounds are the exact quantiles, but for ties."""
    counts = ImageCounts("mean", np.array([0.1, 0.5, 0.9]), np.ones(3))
    exact = np.sort([drawn_score(counts, images) for images in every_resample(3)[0]])
    found = percentile_interval(resampled_means([counts], Draws(images=3, resamples=200_000)))
    assert found is not None
    # 1/27 = 3.7 % lie at either end, more than 2.5 %: the bounds are the least and the greatest mean.
    assert (found.low, found.high) == pytest.approx((exact[0], exact[-1]), abs=1e-12)


def test_each_draw_is_as_likely_as_any_other() -> None:
    matrix = np.concatenate(list(Draws(images=3, resamples=27_000).parts()))
    _, exact = every_resample(3)
    expected: dict[tuple[float, ...], int] = {}
    for row in exact:
        expected[tuple(row)] = expected.get(tuple(row), 0) + 1
    found = [int((matrix == row).all(1).sum()) for row in expected]
    assert sum(found) == 27_000
    assert stats.chisquare(found, [27_000 * n / 27 for n in expected.values()]).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["mean", "iou"])
def test_scores_are_those_of_a_loop(kind: str) -> None:
    rng = np.random.default_rng(3)
    shape = (40,) if kind == "mean" else (40, 6)
    weight = rng.integers(0, 3, shape).astype(float)
    seeds = [ImageCounts(kind, weight * rng.random(shape), weight) for _ in range(3)]  # type: ignore[arg-type]
    draws = Draws(images=40, resamples=50)
    matrix = np.concatenate(list(draws.parts()))
    expected = []
    for row in matrix:
        images = [image for image, times in enumerate(row) for _ in range(int(times))]
        expected.append(np.mean([drawn_score(counts, images) for counts in seeds]))
    np.testing.assert_allclose(resampled_means(seeds, draws), expected, rtol=1e-12)


def test_interval_of_a_mean_is_near_that_of_its_standard_error() -> None:
    values = np.random.default_rng(4).normal(0.5, 0.1, 2000)
    found = percentile_interval(
        resampled_means([ImageCounts("mean", values, np.ones(2000))], Draws(images=2000, resamples=4000))
    )
    error = values.std() / np.sqrt(2000)
    assert found is not None
    assert found == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.1 * error)


def test_draws_do_not_depend_on_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(Draws(images=7, resamples=101).parts()))
    monkeypatch.setattr(statistics, "MOST_KEPT", 8 * 7 * 10)  # ten rows at a time, drawn again at each look
    draws = Draws(images=7, resamples=101)
    for _ in range(2):
        parts = list(draws.parts())
        assert [len(part) for part in parts] == [10] * 10 + [1]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 7).all()


def test_probability_is_the_share_of_all_resamples_with_ties_halved() -> None:
    ours = ImageCounts("mean", np.array([0.5, 0.5, 0.6]), np.ones(3))
    theirs = ImageCounts("mean", np.array([0.4, 0.6, 0.6]), np.ones(3))
    draws, matrix = every_resample(3)
    score = Fraction(0)
    for images in draws:
        better = sum(int(10 * ours.value[i]) - int(10 * theirs.value[i]) for i in images)
        score += Fraction(1) if better > 0 else Fraction(1, 2) if better == 0 else 0
    means = [resampled_scores(one, matrix).round(9) for one in (ours, theirs)]
    assert share_above(*means) == pytest.approx(float(score / 27))
    assert share_above(means[0], means[0]) == 0.5
    assert share_above(*means) + share_above(*means[::-1]) == pytest.approx(1)  # type: ignore[operator]


def test_pairing_sees_a_difference_that_is_smaller_than_the_intervals() -> None:
    images = np.random.default_rng(5).random(300)
    draws = Draws(images=300, resamples=500)
    low, high = (resampled_means([ImageCounts("mean", images + up, np.ones(300))], draws) for up in (0.0, 0.001))
    intervals = [percentile_interval(one) for one in (low, high)]
    assert intervals[0] is not None
    assert intervals[1] is not None
    assert intervals[0].high > intervals[1].low
    assert share_above(high, low) == 1


def test_resamples_without_a_score_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0])
    assert percentile_interval(values) == pytest.approx(np.percentile([1, 2, 3], [2.5, 97.5]))
    assert percentile_interval(values[:1]) is None
    assert share_above(values, np.array([0.0, 0.0, np.nan, 4.0])) == 0.5
    assert share_above(values[:1], np.ones(1)) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.6], (0.3, np.sqrt((0.04 + 0.01 + 0.09) / 2), 3)),
        ([0.4, None, 0.6], (0.5, np.sqrt(0.02), 2)),
        ([None, 0.4], (0.4, None, 1)),
        ([None], (None, None, 0)),
        ([], (None, None, 0)),
    ],
)
def test_spread_by_hand(values: list[float | None], expected: tuple[float | None, ...]) -> None:
    assert tuple(spread_of(values)) == pytest.approx(expected)
