"""What text and Markdown show of a table of results."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts.results import Spread
from pipeline.report.compare import RowComparison, baseline_of, compare_rows
from pipeline.report.paper_rows import PAPER_ROWS, PAPER_TABLES
from pipeline.report.quoted import Quoted
from pipeline.report.rankings import FEWEST_WEIGHTS, rankings_against
from pipeline.report.shown.blocks import Block
from pipeline.report.statistics import INTERVAL_LEVEL, Interval
from pipeline.report.table import ResultsTable, TableCell

NOTHING = "–"
_SPREAD = "Percent. Mean ± sample standard deviation over (n) seeds"
_INTERVALS = "[{level:.0%} interval over images: percentile bootstrap, {resamples} resamples, the same for all seeds]"
_QUOTED = "Quoted rows were not measured here; beside each number is what differs from the column."


def views_of(
    table: ResultsTable,
    quoted: Sequence[Quoted],
    *,
    against: int | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    per_class: bool = False,
    rankings: str | None = None,
) -> list[Block]:
    """All blocks: scores, chances, pairs, rankings, classes, and what the columns are.

    Args:
        against: the row that others are compared with; None: for each the first row of its own backbone.
        pairs: of rows to compare in every column.
        per_class: also the scores by class.
        rankings: the protocol that the others' rankings are held against.
    Raises:
        InputError: there are no results of `rankings`.
    """
    blocks = [_scores(table, quoted)]
    if table.resamples:
        blocks += _chances(table, against)
    blocks += [_pair(table, ours, theirs) for ours, theirs in pairs]
    blocks += [_rankings(table, rankings)] if rankings else []
    blocks += _classes(table) if per_class else []
    return [*blocks, Block(title="Columns", lines=_about(table)), *_remarks(table)]


def paper_blocks() -> list[Block]:
    """All figures of the paper, a block a table."""
    blocks = []
    for table in PAPER_TABLES.values():
        rows = [
            (row.method, row.data, row.metric, f"{row.value:g}" + ("" if row.std is None else f" ± {row.std:g}"))
            for row in PAPER_ROWS
            if row.table == table.name
        ]
        header = ("method", "data", "metric", "value")
        blocks.append(Block(title=f"{table.name}: {table.conditions}", header=header, rows=rows, leading=0))
    return blocks


def percent(value: float | None) -> str:
    """A share as people read it."""
    return NOTHING if value is None else f"{100 * value:.2f}"


def spread_text(spread: Spread) -> str:
    """Mean, deviation and number of seeds."""
    if spread.std is None:
        return percent(spread.mean)
    return f"{percent(spread.mean)} ± {percent(spread.std)} ({spread.n})"


def _interval_text(interval: Interval | None) -> str:
    return f" [{percent(interval.low)}, {percent(interval.high)}]" if interval else ""


def _header(table: ResultsTable) -> list[str]:
    return [f"[{one.number}] {one.title}\n{one.score}\n{one.first.data.name}" for one in table.columns]


def _names(table: ResultsTable) -> list[tuple[str, str, str]]:
    return [(row.shown, row.backbone, row.short) for row in table.rows]


def _scores(table: ResultsTable, quoted: Sequence[Quoted]) -> Block:
    rows = [
        [*names, *(_cell_text(table.cells.get((place, column))) for column in range(len(table.columns)))]
        for place, names in enumerate(_names(table))
    ]
    by_row: dict[tuple[str, str], dict[int, Quoted]] = {}
    for one in quoted:
        by_row.setdefault((one.row.method, one.row.table), {})[one.column] = one
    for (method, source), cells in by_row.items():
        shown = [_quoted_text(cells.get(column)) for column in range(len(table.columns))]
        rows.append([f"{method} ({source})", "", "quoted", *shown])
    intervals = f"; {_INTERVALS.format(level=INTERVAL_LEVEL, resamples=table.resamples)}" if table.resamples else ""
    lines = [f"{_SPREAD}{intervals}.", *([_QUOTED] if quoted else [])]
    lines += [f"{source}: {PAPER_TABLES[source].conditions}." for source in dict.fromkeys(s for _, s in by_row)]
    header = ["weights", "backbone", "sha256", *_header(table)]
    return Block(title="Scores", header=header, rows=rows, leading=3, lines=lines)


def _cell_text(cell: TableCell | None) -> str:
    return NOTHING if cell is None else spread_text(cell.spread) + _interval_text(cell.interval)


def _quoted_text(one: Quoted | None) -> str:
    if one is None:
        return ""
    std = "" if one.row.std is None else f" ± {one.row.std:g}"
    value = one.row.value if one.row.fraction != one.row.value else 100 * one.row.value
    return f"{value:g}{std} ({one.mark})"


def _chances(table: ResultsTable, against: int | None) -> list[Block]:
    """One block; none where no row has another to be compared with."""
    found: dict[tuple[int, int], RowComparison] = {}
    for row, column in table.cells:
        other = against if against is not None else baseline_of(table, row, column)
        one = None if other in (None, row) else compare_rows(table, row, int(other or 0), column)
        if one is not None:
            found[row, column] = one
    whom = sorted({one.theirs for one in found.values()})
    if all(one.probability is None for one in found.values()):
        return []
    rows = [
        [*names, *(_chance_text(table, found.get((row, column)), whom) for column in range(len(table.columns)))]
        for row, names in enumerate(_names(table))
    ]
    named = table.rows[whom[0]].shown if len(whom) == 1 else "the first row of its backbone"
    line = "Share of the resamples of images in which the row's mean over seeds is higher, ties counted half."
    header = ["weights", "backbone", "sha256", *_header(table)]
    return [Block(title=f"Probability of beating {named}", header=header, rows=rows, leading=3, lines=[line])]


def _chance_text(table: ResultsTable, one: RowComparison | None, whom: Sequence[int]) -> str:
    if one is None:
        return NOTHING
    if one.probability is None:
        return one.why or NOTHING
    return f"{one.probability:.3f}" + (f" (against {table.rows[one.theirs].shown})" if len(whom) > 1 else "")


def _pair(table: ResultsTable, ours: int, theirs: int) -> Block:
    rows = []
    for column, about in enumerate(table.columns):
        one = compare_rows(table, ours, theirs, column)
        if one is None:
            continue
        chance = f"{one.probability:.3f}" if one.probability is not None else f"{NOTHING} ({one.why})"
        difference = NOTHING if one.difference is None else f"{100 * one.difference:+.2f}{_interval_text(one.interval)}"
        cells = [spread_text(table.cells[place, column].spread) for place in (ours, theirs)]
        rows.append([f"[{about.number}] {about.first.name} {about.score}", *cells, difference, chance])
    a, b = (f"{table.rows[place].shown} ({table.rows[place].short})" for place in (ours, theirs))
    header = ["column", "A", "B", "A − B", "P(A > B)"]
    lines = [] if rows else ["They have no column in common."]
    return Block(title=f"A = {a} against B = {b}, over the same images", header=header, rows=rows, lines=lines)


def _rankings(table: ResultsTable, protocol: str) -> Block:
    found = rankings_against(table, protocol)
    rows, reference = [], table.columns[found.reference]
    for one in found.agreements:
        about = table.columns[one.column]
        tau = NOTHING if one.tau is None else f"{one.tau:+.2f}"
        interval = (
            f" [{one.interval.low:+.2f}, {one.interval.high:+.2f}]" if one.interval and one.tau is not None else ""
        )
        rows.append([f"[{about.number}] {about.first.name} {about.score}", str(one.weights), tau + interval])
    lines = ["1: the same order of all pairs of weights; 0: as many pairs agree as disagree; -1: the reverse order."]
    lines.append(
        f"Not told of fewer than {FEWEST_WEIGHTS} weights. Intervals are over the images of the row's column alone."
    )
    title = f"Kendall's τ of each ranking of the weights with that by [{reference.number}] {reference.first.name}"
    return Block(title=title, header=["column", "weights", "τ"], rows=rows, lines=lines)


def _classes(table: ResultsTable) -> list[Block]:
    blocks = []
    for number, column in enumerate(table.columns):
        cells = {
            place: table.cells[place, number] for place in range(len(table.rows)) if (place, number) in table.cells
        }
        names = dict.fromkeys(name for cell in cells.values() for name in cell.by_class)
        if names:
            rows = [
                [
                    name,
                    *(
                        spread_text(cell.by_class[name]) if name in cell.by_class else NOTHING
                        for cell in cells.values()
                    ),
                ]
                for name in names
            ]
            header = ["class", *(f"{table.rows[place].shown}\n{table.rows[place].short}" for place in cells)]
            blocks.append(Block(title=f"By class: {column.about}", header=header, rows=rows))
    return blocks


def _about(table: ResultsTable) -> list[str]:
    lines = []
    for column in table.columns:
        lines.append(column.about)
        if column.unlike:
            lines.append(f"    not compared with [{column.unlike[0]}]: {'; '.join(column.unlike[1])}")
        lines += [f"    {note}" for note in column.notes]
    return lines


def _remarks(table: ResultsTable) -> list[Block]:
    return [Block(title="Remarks", lines=table.remarks)] if table.remarks else []
