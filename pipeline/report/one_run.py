"""What the evaluations of one run found: its scores beside random weights, and whether it is above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.results import Spread, read_results_json
from pipeline.artifacts.run_files import SUMMARY_NAME
from pipeline.artifacts.seal import unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import say
from pipeline.report.columns import columns_of
from pipeline.report.compare import RowComparison, compare_rows
from pipeline.report.measured import FINE_TUNING, Measurement, read_measurements
from pipeline.report.search import find_results
from pipeline.report.statistics import spread_of
from pipeline.report.table import ResultsTable, table_of_results

# What ABO is read beside, by score; the weights have no part in them.
REFERENCES = {
    "slic_prior": "SLIC prior",
    "rectangles_prior": "rectangles prior",
    "random_of_equal_k": "random parts of equal K",
    "grid_of_equal_k": "grid of equal K",
    "ceiling_of_grid": "ceiling of the grid",
}


class Reference(NamedTuple):
    """A line of ABO, of the column counted from 0."""

    title: str
    column: int
    spread: Spread


class FineTuningBudget(NamedTuple):
    """How much fine-tuning could learn by itself."""

    iterations: int
    batch_size: int
    images: int


@dataclass(frozen=True, kw_only=True)
class RunFindings:
    """The scores of a run and of the random weights beside it.

    Attributes:
        table: a column for each protocol's headline.
        references: of ABO, where it was scored.
        over_random: in linear segmentation, the run against each of the random weights, over the same images.
        budget: None where nothing was fine-tuned.
    """

    table: ResultsTable
    references: tuple[Reference, ...]
    over_random: tuple[RowComparison, ...]
    budget: FineTuningBudget | None

    @property
    def runs(self) -> list[int]:
        """The rows of weights that are not random."""
        return [place for place, row in enumerate(self.table.rows) if not row.is_random]

    @property
    def not_beaten(self) -> list[str]:
        """Random weights that the run is not shown to be above: the interval has no lower end above 0."""
        rows = self.table.rows
        return [rows[one.theirs].shown for one in self.over_random if not (one.interval and one.interval.low > 0)]


def findings_of_run(markers: Sequence[Path], *, resamples: int) -> RunFindings | None:
    """What finished evaluations of one run found; None where there is nothing.

    Args:
        markers: the last file of each: `results.json` of a fine-tuning, `summary.json` of frozen features. Results that
            the latter does not name are of other settings, and are left out.
        resamples: of the bootstrap over images.
    Raises:
        InputError: a summary is damaged, or a link.
    """
    measurements = [one for marker in markers for one in _measured(marker)]
    if not measurements:
        return None
    table = table_of_results(columns_of(measurements), resamples=resamples)
    return RunFindings(
        table=table,
        references=tuple(_references(table)),
        over_random=tuple(_over_random(table)),
        budget=next((budget for one in measurements if (budget := _budget(one))), None),
    )


def _measured(marker: Path) -> list[Measurement]:
    is_summary = marker.name == SUMMARY_NAME
    read = read_measurements(find_results([marker.parent]).files if is_summary else [marker])
    for line in read.damaged:
        say(f"r2o: left out: {line}")
    if not is_summary:
        return read.measurements
    named = _named_by(marker)
    return [one for one in read.measurements if one.record and one.record.fingerprint in named]


def _named_by(summary: Path) -> set[str]:
    """Fingerprints of the results that a summary is of."""
    try:
        rows = unsealed(read_results_json(summary) or {}, required=True)["rows"]
        return {one["fingerprint"] for row in rows for results in row["weights"].values() for one in results}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{summary} is damaged; move it away and run the same command again") from None


def _references(table: ResultsTable) -> Iterator[Reference]:
    for column, about in enumerate(table.columns):
        cells = [table.cells[row, column] for row in range(len(table.rows)) if (row, column) in table.cells]
        if about.first.name != "abo" or not about.is_headline:
            continue
        for score, title in REFERENCES.items():
            values = [one.scores[score] for one in cells[-1].measurements if score in one.scores]
            if values:
                yield Reference(title, column, spread_of(values))


def _over_random(table: ResultsTable) -> Iterator[RowComparison]:
    random = [place for place, row in enumerate(table.rows) if row.is_random]
    for column, about in enumerate(table.columns):
        for run in range(len(table.rows)):
            if about.first.name == "linear" and run not in random:
                yield from (one for theirs in random if (one := compare_rows(table, run, theirs, column)))


def _budget(one: Measurement) -> FineTuningBudget | None:
    given = (one.settings.get("iterations"), one.settings.get("batch_size"), one.data.images.get("train"))
    values = [value for value in given if isinstance(value, int)]
    return FineTuningBudget(*values) if one.protocol == FINE_TUNING and len(values) == len(given) else None
