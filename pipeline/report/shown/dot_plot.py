"""The table as a picture: a dot a cell, its interval over images, and its seeds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import one_line
from pipeline.report.quoted import Quoted
from pipeline.report.shown.blocks import shortened
from pipeline.report.table import ResultsTable

MOST_ROWS, MOST_PANELS = 150, 60
PANELS_ACROSS = 3
ROW_INCHES, PANEL_INCHES, NAMES_INCHES = 0.26, 3.2, 2.2
NAME_WIDTH = 30  # characters of weights and of panels' titles
DOTS_PER_INCH = 110


def draw_table(table: ResultsTable, quoted: Sequence[Quoted]) -> bytes:
    """A PNG: a panel for each column; its rows are the weights, and below them what is quoted, as hollow squares.

    Filled dots are means over seeds, small ones the seeds, lines the intervals over images.

    Raises:
        InputError: matplotlib is not installed, or there is more than one can look at.
    """
    if len(table.rows) > MOST_ROWS or len(table.columns) > MOST_PANELS:
        what = f"{len(table.rows)} weights and {len(table.columns)} columns"
        raise InputError(f"--picture: {what}; it shows {MOST_ROWS} and {MOST_PANELS}: name fewer results")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("--picture needs matplotlib: pip install 'r2o[plots]'") from None
    names = [(f"{row.shown}", row.backbone, row.short) for row in table.rows]
    labels = [f"{shortened(one_line(shown), NAME_WIDTH)} {backbone} {short}" for shown, backbone, short in names]
    sources = list(dict.fromkeys((one.row.method, one.row.table) for one in quoted))
    labels += [f"{method} ({source}), quoted" for method, source in sources]
    across = min(PANELS_ACROSS, len(table.columns))
    down = -(-len(table.columns) // across)
    size = (NAMES_INCHES + across * PANEL_INCHES, down * (0.9 + ROW_INCHES * len(labels)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for column, panel in enumerate(panels):
        if column < len(table.columns):
            _draw_column(panel, table, column)
            _draw_quoted(panel, [one for one in quoted if one.column == column], sources, first=len(table.rows))
        else:
            panel.set_visible(False)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    # A label is no formula, whatever signs it holds.
    panels[0].set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # signs that the font does not have are drawn as boxes
        FigureCanvasAgg(figure).print_figure(content, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()


def _draw_column(panel: Any, table: ResultsTable, column: int) -> None:
    about = table.columns[column]
    title = f"[{about.number}] {about.title}, {about.score}\n{shortened(about.first.data.name, NAME_WIDTH)}"
    panel.set_title(title, fontsize=8, parse_math=False)
    panel.tick_params(labelsize=7)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    for place in range(len(table.rows)):
        cell = table.cells.get((place, column))
        if cell is None or cell.spread.mean is None:
            continue
        colour = "0.45" if table.rows[place].is_random else "tab:blue"
        if cell.interval:
            panel.plot([100 * bound for bound in cell.interval], [place, place], color=colour, linewidth=2, alpha=0.6)
        seeds = [one.scores[about.score] for one in cell.measurements]
        found = [100 * score for score in seeds if score is not None]
        if len(found) > 1:
            panel.plot(found, [place + 0.25] * len(found), ".", color=colour, markersize=3)
        panel.plot([100 * cell.spread.mean], [place], "o", color=colour, markersize=5)


def _draw_quoted(panel: Any, quoted: Sequence[Quoted], sources: Sequence[tuple[str, str]], *, first: int) -> None:
    for one in quoted:
        place = first + sources.index((one.row.method, one.row.table))
        panel.plot([100 * one.row.fraction], [place], "s", color="tab:orange", markersize=5, markerfacecolor="none")
