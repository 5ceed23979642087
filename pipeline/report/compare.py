"""Which of two weights is better, over the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.foundation.errors import InputError
from pipeline.report.measured import ReportedWeights
from pipeline.report.statistics import Interval, percentile_interval, share_above
from pipeline.report.table import ResultsTable

FEWEST_DIGITS = 4  # of a hash that names weights


@dataclass(frozen=True, kw_only=True)
class RowComparison:
    """Two rows in one column.

    Attributes:
        ours, theirs: rows, counted from 0.
        difference: of their means over seeds, ours − theirs.
        interval: of that difference, over images that both were scored on.
        probability: share of the resamples in which ours is above theirs, ties counted half.
        why: why there are no interval and no probability.
    """

    ours: int
    theirs: int
    column: int
    difference: float | None
    interval: Interval | None = None
    probability: float | None = None
    why: str | None = None


def compare_rows(table: ResultsTable, ours: int, theirs: int, column: int) -> RowComparison | None:
    """One comparison; None where one of both was not measured in this column."""
    mine, other = table.cells.get((ours, column)), table.cells.get((theirs, column))
    if mine is None or other is None:
        return None
    means = mine.spread.mean, other.spread.mean
    difference = None if means[0] is None or means[1] is None else means[0] - means[1]
    if mine.resampled is None or other.resampled is None:
        why = "no counts by image" if table.resamples else "--bootstrap 0"
        return RowComparison(ours=ours, theirs=theirs, column=column, difference=difference, why=why)
    if mine.resampled.images != other.resampled.images:
        why = "scored on other images"
        return RowComparison(ours=ours, theirs=theirs, column=column, difference=difference, why=why)
    return RowComparison(
        ours=ours,
        theirs=theirs,
        column=column,
        difference=difference,
        interval=percentile_interval(mine.resampled.means - other.resampled.means),
        probability=share_above(mine.resampled.means, other.resampled.means),
    )


def baseline_of(table: ResultsTable, row: int, column: int) -> int | None:
    """The first row of the same backbone that was measured in the column: random weights where there are any."""
    backbone = table.rows[row].backbone
    rows = (place for place, other in enumerate(table.rows) if other.backbone == backbone)
    return next((place for place in rows if (place, column) in table.cells), None)


def row_named(rows: Sequence[ReportedWeights], name: str) -> int:
    """The row that a label names, a label and its backbone, or the first digits of a hash.

    Raises:
        InputError: none, or several.
    """
    exact = [place for place, row in enumerate(rows) if name in (row.label, row.shown, f"{row.shown} {row.backbone}")]
    digits = name.removeprefix("run ").lower()
    by_hash = [
        place
        for place, row in enumerate(rows)
        if len(digits) >= FEWEST_DIGITS and any((one or "").startswith(digits) for one in (row.sha256, row.run))
    ]
    found = exact or by_hash
    if len(found) == 1:
        return found[0]
    asked = [rows[place] for place in found] or rows
    named = ", ".join(f"{row.shown!r} of {row.backbone} ({row.short})" for row in asked)
    what = "is several" if found else "is none of the weights"
    raise InputError(f"{name!r} {what}: {named}; name a label, `label backbone` or the first digits of the hash")
