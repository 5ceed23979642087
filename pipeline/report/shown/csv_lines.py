"""The table as CSV: a line for each of weights × column, with all ids and full precision."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.artifacts.results import Spread
from pipeline.report.compare import baseline_of, compare_rows
from pipeline.report.measured import ReportedWeights
from pipeline.report.paper_rows import PAPER_ROWS, PAPER_TABLES, PaperRow
from pipeline.report.quoted import Quoted
from pipeline.report.table import ResultsTable, TableCell

WEIGHTS_FIELDS = ("label", "backbone", "batch_norm", "sha256", "run_fingerprint")
FIELDS = (
    "source", "column", *WEIGHTS_FIELDS, "protocol", "score", "class", "mean", "std", "n", "low", "high", "resamples",
    "against", "against_sha256", "difference", "difference_low", "difference_high", "probability",
    "data", "layout", "data_fingerprint", "images", "settings", "seeds", "results", "differs", "conditions",
)  # fmt: skip


def as_csv(
    table: ResultsTable,
    quoted: Sequence[Quoted],
    *,
    against: int | None = None,
    pairs: Sequence[tuple[int, int]] = (),
    per_class: bool = False,
) -> str:
    """The CSV, header first. Scores are in [0, 1], as in results.json. Arguments: those of `views_of`.

    A comparison that `pairs` ask for is a line of its own of source "comparison".
    """
    lines: list[dict[str, Any]] = []
    for (row, column), cell in sorted(table.cells.items(), key=lambda item: item[0][::-1]):
        other = against if against is not None else baseline_of(table, row, column)
        same = _of_cell(table, row, column)
        spread = {**_spread(cell.spread), **_interval(cell), "resamples": table.resamples}
        lines.append({**same, **spread, **(_against(table, row, other, column) if other is not None else {})})
        if per_class:
            lines += [{**same, "class": name, **_spread(one)} for name, one in cell.by_class.items()]
    for one in quoted:
        first = table.columns[one.column].first
        about = {"column": one.column + 1, "protocol": first.protocol, "score": table.columns[one.column].score}
        lines.append({**_of_paper(one.row), **about, "differs": "; ".join(one.differs)})
    for ours, theirs in pairs:
        for column in range(len(table.columns)):
            found = _against(table, ours, theirs, column)
            lines += [{**_of_cell(table, ours, column), **found, "source": "comparison"}] if found else []
    return _encoded(lines)


def paper_csv() -> str:
    """All figures of the paper in the same form."""
    return _encoded(_of_paper(row) for row in PAPER_ROWS)


def _encoded(lines: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: "" if value is None else value for name, value in line.items()})
    return text.getvalue()


def _of_cell(table: ResultsTable, row: int, column: int) -> dict[str, Any]:
    cell, about = table.cells[row, column], table.columns[column]
    first = about.first
    return {
        "source": "measured",
        "column": about.number,
        **dict(zip(WEIGHTS_FIELDS, _ids(table.rows[row]), strict=True)),
        "protocol": first.protocol,
        "score": about.score,
        "data": first.data.name,
        "layout": first.data.layout,
        "data_fingerprint": first.data.fingerprint,
        "images": json.dumps(dict(first.data.images)),
        "settings": json.dumps(first.compared_settings(about.score), sort_keys=True),
        "seeds": " ".join(str(one.seed) for one in cell.measurements),
        "results": json.dumps([str(path) for path in dict.fromkeys(one.path for one in cell.measurements)]),
    }


def _ids(row: ReportedWeights) -> tuple[str | None, ...]:
    return (row.label, row.backbone, row.batch_norm, row.sha256, row.run)


def _spread(spread: Spread) -> dict[str, Any]:
    return {"mean": spread.mean, "std": spread.std, "n": spread.n}


def _interval(cell: TableCell) -> dict[str, Any]:
    return cell.interval._asdict() if cell.interval else {}


def _against(table: ResultsTable, row: int, other: int, column: int) -> dict[str, Any]:
    """The comparison with another row; nothing with itself, or where one was not measured."""
    found = None if row == other else compare_rows(table, row, other, column)
    if found is None:
        return {}
    low, high = found.interval or (None, None)
    return {
        "against": table.rows[other].shown,
        "against_sha256": table.rows[other].sha256,
        "difference": found.difference,
        "difference_low": low,
        "difference_high": high,
        "probability": found.probability,
    }


def _of_paper(row: PaperRow) -> dict[str, Any]:
    table = PAPER_TABLES[row.table]
    return {
        "source": f"quoted: {row.table}",
        "label": row.method,
        "score": row.metric,
        "mean": row.fraction,
        "std": row.std_fraction,
        "n": 3 if row.std is not None else None,
        "data": row.data,
        "conditions": table.conditions,
    }
