"""From paths to a table, as text, Markdown or CSV, and as a picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.artifacts.scores import PER_IMAGE_NAME, SCORES_NAME
from pipeline.foundation.errors import InputError, os_errors_named
from pipeline.foundation.files import write_atomic
from pipeline.foundation.progress import say
from pipeline.report.columns import columns_of
from pipeline.report.compare import row_named
from pipeline.report.measured import read_measurements
from pipeline.report.one_run import findings_of_run
from pipeline.report.quoted import WhichQuoted, quoted_beside
from pipeline.report.search import MOST_LEVELS, find_results
from pipeline.report.shown.blocks import as_markdown, as_text
from pipeline.report.shown.csv_lines import as_csv, paper_csv
from pipeline.report.shown.dot_plot import check_plotting, draw_table
from pipeline.report.shown.one_run_blocks import blocks_of_run
from pipeline.report.shown.views import paper_blocks, views_of
from pipeline.report.table import ResultsTable, table_of_results

ReportFormat = Literal["text", "markdown", "csv"]
_WRITERS = {"text": as_text, "markdown": as_markdown}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a report shows.

    Attributes:
        scores: names; none: headlines. `resamples`: of the bootstrap; 0: none.
        against: names the row that all are compared with; None: the first of their backbone.
        pairs: names of rows to compare in every column.
        rankings: the protocol that the rankings of others are held against; not in CSV.
    """

    scores: tuple[str, ...] = ()
    per_class: bool = False
    resamples: int
    against: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    rankings: str | None = None
    quoted: WhichQuoted = "main"
    format: ReportFormat = "text"


def make_report(places: Sequence[Path], wanted: Wanted, *, picture: Path | None = None) -> str:
    """The text of a report; what was left out is said on stderr and in the report.

    Args:
        picture: PNG to draw too.
    Raises:
        InputError: a place or a name is wrong, nothing can be shown, or the picture cannot be drawn or written.
    """
    if picture:
        check_plotting()
    if wanted.rankings and wanted.format == "csv":
        raise InputError("--rankings has no CSV; take --format text or markdown")
    table = read_table(places, scores=wanted.scores, resamples=wanted.resamples)
    quoted = quoted_beside(table.columns, wanted.quoted)
    against = None if wanted.against is None else row_named(table.rows, wanted.against)
    pairs = [(row_named(table.rows, ours), row_named(table.rows, theirs)) for ours, theirs in wanted.pairs]
    write = _WRITERS.get(wanted.format)
    if write:
        views = views_of(
            table, quoted, against=against, pairs=pairs, per_class=wanted.per_class, rankings=wanted.rankings
        )
        text = write(views)
    else:
        text = as_csv(table, quoted, against=against, pairs=pairs, per_class=wanted.per_class)
        for remark in table.remarks:
            say(f"r2o: {remark}")
    if picture:
        save(picture, draw_table(table, quoted))
    return text


def paper_report(form: ReportFormat) -> str:
    """All figures of the paper."""
    write = _WRITERS.get(form)
    return write(paper_blocks()) if write else paper_csv()


def run_report(markers: Sequence[Path], *, resamples: int) -> str:
    """What finished evaluations of one run found, as text; empty where there is nothing.

    Args:
        markers: as `findings_of_run` takes them.
    """
    found = findings_of_run(markers, resamples=resamples)
    return as_text(blocks_of_run(found)) if found else ""


def read_table(places: Sequence[Path], *, scores: Sequence[str], resamples: int) -> ResultsTable:
    """The table of everything that can be read below the places.

    Raises:
        InputError: a place is wrong, nothing is left, or a score is unknown.
    """
    found = find_results(places)
    read = read_measurements(found.files)
    for line in read.damaged:
        say(f"r2o: left out: {line}")
    passed: list[tuple[Sequence[object], str]] = [
        (found.links, "links were not followed"),
        (found.deeper, f"folders lie more than {MOST_LEVELS} levels down and were not entered"),
        (found.unreadable, "folders could not be listed"),
        (read.damaged, "files of results could not be read and are left out"),
    ]
    remarks = [f"{len(which)} {what}: {which[0]}" + (", …" if which[1:] else "") for which, what in passed if which]
    if not read.measurements:
        below = ", ".join(map(str, places[:3])) + (", …" if places[3:] else "")
        raise InputError(f"no results at or below {below}" + "".join(f"; {remark}" for remark in remarks))
    table = table_of_results(columns_of(read.measurements, scores), resamples=resamples)
    return replace(table, remarks=(*remarks, *table.remarks))


def save(path: Path, content: bytes | str) -> None:
    """Write a report or picture, never over results. Raises InputError where that cannot be."""
    if path.name in (SCORES_NAME, PER_IMAGE_NAME):
        raise InputError(f"{path}: {path.name} is what evaluations write; choose another name")
    with os_errors_named(path):
        write_atomic(path, content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def give(text: str, out: Path | None) -> None:
    """Print a report, or write it to `out`."""
    if out is not None:
        save(out, text)
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, errors="backslashreplace").decode(encoding), end="", flush=True)
    except BrokenPipeError:  # the reader, as `head`, has seen enough; nothing is said to it when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
