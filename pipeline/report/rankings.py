"""How far cheap protocols rank weights as another protocol does: Kendall's τ, with intervals over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from pipeline.foundation.errors import InputError
from pipeline.report.statistics import Interval, percentile_interval
from pipeline.report.table import ResultsTable, TableCell

FEWEST_WEIGHTS = 4  # three weights have six orders, so that agreement by chance is common


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How one column ranks the weights that the reference ranks too.

    Attributes:
        column: counted from 0.
        weights: how many have a score in both.
        tau: Kendall's τ-b in [-1, 1]; None with fewer than FEWEST_WEIGHTS, or where one of them has one score for all.
        interval: of τ, over the images of `column`; the reference's scores are held as they are.
    """

    column: int
    weights: int
    tau: float | None
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Rankings:
    """All columns but the reference, which is one too, counted from 0."""

    reference: int
    agreements: tuple[Agreement, ...]


def rankings_against(table: ResultsTable, protocol: str) -> Rankings:
    """Every other column, held against the protocol's column of most weights.

    Raises:
        InputError: the table has no column of that protocol.
    """
    columns = [place for place, column in enumerate(table.columns) if column.first.name == protocol]
    if not columns:
        known = ", ".join(dict.fromkeys(column.first.name for column in table.columns))
        raise InputError(f"--rankings {protocol}: these results have no such protocol; there are {known}")
    reference = max(columns, key=lambda place: (len(_scored(table, place)), -place))
    others = (place for place in range(len(table.columns)) if place != reference)
    return Rankings(reference=reference, agreements=tuple(_agreement(table, place, reference) for place in others))


def kendall_tau(ours: Float64[np.ndarray, " n"], theirs: Float64[np.ndarray, " n"]) -> float | None:
    """Kendall's τ-b: concordant less discordant pairs, over the pairs that neither side ties (Kendall 1945).

    Returns:
        a value in [-1, 1]; None where one side has one value for all.
    """
    first, second = np.triu_indices(len(ours), 1)
    mine, other = np.sign(ours[first] - ours[second]), np.sign(theirs[first] - theirs[second])
    untied = float(np.count_nonzero(mine)) * float(np.count_nonzero(other))
    return float((mine * other).sum()) / untied**0.5 if untied else None


def _scored(table: ResultsTable, column: int) -> dict[int, TableCell]:
    """The cells of a column that have a score, by row."""
    cells = {row: table.cells.get((row, column)) for row in range(len(table.rows))}
    return {row: cell for row, cell in cells.items() if cell is not None and cell.spread.mean is not None}


def _agreement(table: ResultsTable, column: int, reference: int) -> Agreement:
    cells, others = _scored(table, column), _scored(table, reference)
    rows = [row for row in cells if row in others]
    tau = interval = None
    if len(rows) >= FEWEST_WEIGHTS:
        theirs = np.array([others[row].spread.mean for row in rows], dtype=np.float64)
        tau = kendall_tau(np.array([cells[row].spread.mean for row in rows], dtype=np.float64), theirs)
        interval = _interval([cells[row] for row in rows], theirs) if tau is not None else None
    return Agreement(column=column, weights=len(rows), tau=tau, interval=interval)


def _interval(cells: list[TableCell], theirs: Float64[np.ndarray, " n"]) -> Interval | None:
    """None where a score has no counts by image, or some were scored on other images."""
    resampled = [cell.resampled for cell in cells]
    if any(one is None for one in resampled) or len({one.images for one in resampled if one}) > 1:
        return None
    drawn = np.stack([one.means for one in resampled if one], axis=1)
    taus = [None if np.isnan(scores).any() else kendall_tau(scores, theirs) for scores in drawn]
    return percentile_interval(np.array([np.nan if tau is None else tau for tau in taus]))
