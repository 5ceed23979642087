"""The table as a picture: a dot for each cell, with its interval over images and its seeds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Any

from pipeline.foundation.errors import InputError
from pipeline.report.quoted import Quoted
from pipeline.report.shown.blocks import shortened
from pipeline.report.statistics import INTERVAL_LEVEL
from pipeline.report.table import ResultsTable, TableCell

MOST_ROWS, MOST_PANELS = 150, 60
PANELS_ACROSS = 2
ROW_INCHES, PANEL_INCHES, TITLE_INCHES = 0.26, 6.2, 0.9
NAME_WIDTH = 36  # characters of weights and of data sets
DOTS_PER_INCH = 110
PanelLine = tuple[str, TableCell | Quoted, str]  # label, what it stands for, colour
CAPTION = "Percent. Dots: means over seeds; small ones: seeds. Lines: {level:.0%} intervals of images. Squares: quoted."


def check_plotting() -> None:
    """Raises InputError where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError("--picture needs matplotlib; pip install -e '.[plots]'") from None


def draw_table(table: ResultsTable, quoted: Sequence[Quoted]) -> bytes:
    """A PNG: a panel for each column, a line for each of its weights, and below them what is quoted beside it.

    Raises:
        InputError: matplotlib is not installed, or there is more than one can look at.
    """
    if len(table.rows) > MOST_ROWS or len(table.columns) > MOST_PANELS:
        what = f"{len(table.rows)} weights and {len(table.columns)} columns"
        raise InputError(f"--picture: {what} are more than {MOST_ROWS} and {MOST_PANELS}; name fewer results")
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [_lines_of(table, quoted, column) for column in range(len(table.columns))]
    across = min(PANELS_ACROSS, len(panels))
    heights = [
        TITLE_INCHES + ROW_INCHES * max(map(len, panels[start : start + across]))
        for start in range(0, len(panels), across)
    ]
    figure = Figure(figsize=(across * PANEL_INCHES, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(heights), across, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
    for place, axis in enumerate(axes):
        axis.set_visible(place < len(panels))
    for column, lines in enumerate(panels):
        _draw_panel(axes[column], table, column, lines)
    figure.supxlabel(CAPTION.format(level=INTERVAL_LEVEL), fontsize=7)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # signs that the font does not have are drawn as boxes
        FigureCanvasAgg(figure).print_figure(content, dpi=DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()


def _lines_of(table: ResultsTable, quoted: Sequence[Quoted], column: int) -> list[PanelLine]:
    """What a panel shows from top to bottom: a label, what it stands for, and its colour."""
    lines: list[PanelLine] = []
    for place, row in enumerate(table.rows):
        if (cell := table.cells.get((place, column))) is not None:
            label = f"{shortened(row.shown, NAME_WIDTH)} {shortened(row.backbone, NAME_WIDTH)} {row.short}"
            lines.append((label, cell, "0.45" if row.is_random else "tab:blue"))
    beside = [one for one in quoted if one.column == column]
    return lines + [(f"{one.row.method} ({one.row.table}, {one.mark})", one, "tab:orange") for one in beside]


def _draw_panel(axis: Any, table: ResultsTable, column: int, lines: Sequence[PanelLine]) -> None:
    about = table.columns[column]
    title = f"[{about.number}] {about.title}, {about.score}\n{about.first.data.name}"
    # A label is no formula, whatever signs it holds.
    named = [shortened(part, 2 * NAME_WIDTH) for part in title.split("\n", 1)]
    axis.set_title("\n".join(named), fontsize=8, parse_math=False)
    axis.set_yticks(range(len(lines)), [label for label, _, _ in lines], fontsize=7, parse_math=False)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    axis.tick_params(labelsize=7)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    for place, (_, shown, colour) in enumerate(lines):
        if isinstance(shown, Quoted):
            axis.plot([100 * shown.row.fraction], [place], "s", color=colour, markersize=5, markerfacecolor="none")
        elif shown.spread.mean is not None:
            _draw_cell(axis, place, shown, about.score, colour)


def _draw_cell(axis: Any, place: int, cell: TableCell, score: str, colour: str) -> None:
    assert cell.spread.mean is not None
    if cell.interval:
        axis.plot([100 * bound for bound in cell.interval], [place, place], color=colour, linewidth=2, alpha=0.6)
    found = [100 * value for one in cell.measurements if (value := one.scores[score]) is not None]
    if len(found) > 1:
        axis.plot(found, [place + 0.25] * len(found), ".", color=colour, markersize=3)
    axis.plot([100 * cell.spread.mean], [place], "o", color=colour, markersize=5)
