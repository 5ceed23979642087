"""The table: a row for each of the weights, a column for each protocol, score and data set."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64

from pipeline.artifacts.results import Spread
from pipeline.artifacts.scores import PER_IMAGE_NAME, ImageCounts, read_counts, score_of
from pipeline.foundation.errors import InputError
from pipeline.report.columns import Column
from pipeline.report.measured import Measurement, ReportedWeights
from pipeline.report.statistics import Draws, Interval, percentile_interval, resampled_means, spread_of

AGREEMENT = 1e-6  # between a score and what its counts by image give


@dataclass(frozen=True, kw_only=True)
class Resampled:
    """A cell's mean over seeds in every resample. Only those of equal `images` may be compared.

    `images`: a hash of the images' names, in order.
    """

    images: str
    means: Float64[np.ndarray, " resamples"]


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """What one set of weights scored in one column.

    Attributes:
        measurements: one a seed, by seed.
        spread, by_class: over seeds.
        interval: over images; None where there are no counts by image.
    """

    measurements: tuple[Measurement, ...]
    spread: Spread
    by_class: dict[str, Spread]
    interval: Interval | None
    resampled: Resampled | None


@dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """Rows, columns, and the cells by (row, column), counted from 0; a missing one was not measured.

    `remarks`: what a reader has to know, a line each.
    """

    rows: tuple[ReportedWeights, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[int, int], TableCell]
    resamples: int
    remarks: tuple[str, ...]


def table_of_results(columns: Sequence[Column], *, resamples: int) -> ResultsTable:
    """Fill the table. Random weights come first, the others in the order of their files.

    Args:
        resamples: of the bootstrap; 0: no intervals.
    """
    remarks: list[str] = []
    by_identity: dict[tuple[str, ...], ReportedWeights] = {}
    for one in (one for column in columns for one in column.measurements):
        known = by_identity.setdefault(one.weights.identity, one.weights)
        if known.label != one.weights.label:
            remarks.append(f"{known.label} and {one.weights.label} are the same weights ({known.short}): one row")
    rows = sorted(by_identity.values(), key=lambda row: (not row.is_random, row.label if row.is_random else ""))
    place = {row.identity: number for number, row in enumerate(rows)}
    cells = {}
    for number, column in enumerate(columns):
        groups: dict[int, list[Measurement]] = {}
        for one in column.measurements:
            groups.setdefault(place[one.weights.identity], []).append(one)
        for row, group in groups.items():
            cells[row, number] = _cell(_once_a_seed(group, column, remarks), column, resamples, remarks)
    return ResultsTable(
        rows=tuple(rows),
        columns=tuple(columns),
        cells=cells,
        resamples=resamples,
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _once_a_seed(group: Sequence[Measurement], column: Column, remarks: list[str]) -> tuple[Measurement, ...]:
    """The first measurement of every seed, by seed; whether others agree is said."""
    kept: dict[int, Measurement] = {}
    for one in group:
        first = kept.setdefault(one.seed, one)
        if first is not one:
            same = one.scores.get(column.score) == first.scores.get(column.score)
            what = "holds the same again; counted once" if same else "differs; left out"
            whose = f"{one.weights.label}, seed {one.seed}"
            remarks.append(f"[{column.number}] {whose}: {first.path} is shown; {one.path} {what}")
    return tuple(kept[seed] for seed in sorted(kept))


def _cell(measurements: tuple[Measurement, ...], column: Column, resamples: int, remarks: list[str]) -> TableCell:
    score = column.score
    resampled, label = None, f"[{column.number}] {measurements[0].weights.label}"
    if resamples:
        try:
            resampled = _resample(measurements, score, resamples)
        except InputError as error:
            remarks.append(f"{label}: no interval: {error}")
    per_class = [one.per_class.get(score, {}) for one in measurements]
    names = dict.fromkeys(name for one in per_class for name in one)
    unscored = sum(one.scores[score] is None for one in measurements)
    if unscored:
        remarks.append(f"{label}: {unscored} of {len(measurements)} seeds could not be scored")
    return TableCell(
        measurements=measurements,
        spread=spread_of([one.scores[score] for one in measurements]),
        by_class={name: spread_of([one.get(name) for one in per_class]) for name in names},
        interval=percentile_interval(resampled.means) if resampled else None,
        resampled=resampled,
    )


def _resample(measurements: Sequence[Measurement], score: str, resamples: int) -> Resampled | None:
    """None where no seed has a score, or the protocol keeps no counts by image of it.

    Raises:
        InputError: counts are missing, damaged, or of other images than those of another seed.
    """
    seeds, names = [], None
    for one in measurements:
        if one.record is None or score not in one.record.per_image.kinds:
            return None
        if one.scores[score] is None:
            continue
        images, counts = _counts(one, score)
        if names not in (None, images):
            raise InputError(f"{one.path.parent / PER_IMAGE_NAME} is of other images than that of another seed")
        names = images
        seeds.append(counts)
    if not names:
        return None
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()
    return Resampled(images=digest, means=resampled_means(seeds, _draws(len(names), resamples)))


def _counts(one: Measurement, score: str) -> tuple[tuple[str, ...], ImageCounts]:
    """The counts by image of one score, which give that score. Raises InputError where they do not."""
    assert one.record is not None
    path = one.path.parent / PER_IMAGE_NAME
    try:
        names, by_score = read_counts(one.path.parent, one.record)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path} does not hold what {one.path.name} says; evaluate again") from None
    counts = by_score[score]
    if not _are_counts(names, counts):
        raise InputError(f"{path}: what it holds of {score} are no counts by image; evaluate again")
    given, stored = score_of(counts), one.scores[score]
    if given is None or stored is None or abs(given - stored) > AGREEMENT:
        raise InputError(f"{path} gives {score} {given}, {one.path.name} has {stored}; evaluate again")
    return names, counts


def _are_counts(names: tuple[object, ...], counts: ImageCounts) -> bool:
    value, weight = counts.value, counts.weight
    if value.ndim == 0 or value.shape != weight.shape or not all(isinstance(name, str) for name in names):
        return False
    numbers = all(one.dtype.kind in "fiub" and np.isfinite(one).all() for one in (value, weight))
    return numbers and len(names) == len(value) and not (weight < 0).any()


@lru_cache(maxsize=1)
def _draws(images: int, resamples: int) -> Draws:
    return Draws(images=images, resamples=resamples)
