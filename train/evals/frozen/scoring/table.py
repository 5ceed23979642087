"""The table at the end of an evaluation: one row a protocol, one column the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.scores import Scores


class Row(NamedTuple):
    """Results of one protocol on one set of images: by weights, those of every seed."""

    data: str
    protocol: str
    headline: str
    by_label: Mapping[str, Sequence[Scores]]


def headline_of(results: Sequence[Scores]) -> list[float]:
    """The headline of each result that has one, in [0, 1]."""
    found = [scores.scores[scores.protocol.headline] for scores in results]
    return [value for value in found if value is not None]


def table_of_rows(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """Headlines in percent, mean ± sample standard deviation over seeds where there are several."""
    titles = [f"{row.data} {row.protocol} ({row.headline}, %)" for row in rows]
    cells = [[_cell(headline_of(row.by_label.get(label, ()))) for label in labels] for row in rows]
    widths = [max(len(label), *(len(row[i]) for row in cells)) for i, label in enumerate(labels)]
    first = max(map(len, titles))
    lines = [" " * first + "".join(f"  {label:>{width}}" for label, width in zip(labels, widths, strict=True))]
    for title, row in zip(titles, cells, strict=True):
        lines.append(f"{title:<{first}}" + "".join(f"  {c:>{w}}" for c, w in zip(row, widths, strict=True)))
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * float(np.std(values, ddof=1)):.1f}" if len(values) > 1 else ""
    return f"{100 * float(np.mean(values)):.1f}{spread}"
