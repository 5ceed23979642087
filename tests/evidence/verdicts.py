"""What scores of several methods and seeds count as, by the rules that were registered before any run (docs/log.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from pipeline.report.columns import Column
from pipeline.report.compare import compare_rows
from pipeline.report.measured import read_measurements
from pipeline.report.report import read_table
from pipeline.report.search import find_results
from pipeline.report.shown.blocks import Block, as_markdown
from pipeline.report.shown.views import NOTHING, views_of
from pipeline.report.table import ResultsTable
from tests.evidence.methods import METHODS

RESAMPLES = 2000
SEEDS_OF_A_CLAIM = 3
PRIMARY = {("classes", "linear"), ("classes", "knn20"), ("linear", "mean_iou")}  # protocol and score
SCORES = ("linear", "knn20", "mean_iou", "over_objects", "slic_prior", "image_mean_of_both")
# A part of R2O, the method with it and the method without it.
PARTS_OF_R2O = (
    ("curriculum, against K = 4", "r2o", "fixed_k4"),
    ("curriculum, against K = 128", "r2o", "fixed_k128"),
    ("refinement", "painted", "unrefined"),
    ("superpixels, against rectangles", "painted", "spatial"),
)
Rows = Mapping[str, Mapping[int, int]]  # by method and seed, the row of the table


def write_results(work: Path) -> None:
    """Write WORK/results.md: verdicts, then all scores, then rankings."""
    fine_tuned = sorted(work.glob("runs/*/eval-voc/results.json"))
    places = [work / "scores", *fine_tuned]
    there = {name for one in read_measurements(find_results(places).files).measurements for name in one.scores}
    table = read_table(places, scores=[name for name in SCORES if name in there], resamples=RESAMPLES)
    rows = rows_of(table)
    blocks = [byol_block(table, rows), parts_block(table, rows), random_block(table, rows)]
    try:
        views = views_of(table, (), rankings="voc")
    except InputError:  # nothing is fine-tuned yet
        views = views_of(table, ())
    write_atomic(work / "results.md", as_markdown([*blocks, *views]).encode())


def rows_of(table: ResultsTable) -> Rows:
    """The rows that are runs of known methods."""
    found: dict[str, dict[int, int]] = {}
    for place, row in enumerate(table.rows):
        named = re.fullmatch(r"(\w+)-seed(\d+)", row.label)
        if named and named[1] in METHODS:
            found.setdefault(named[1], {})[int(named[2])] = place
    return found


def verdict(differences: Sequence[float]) -> str:
    """What R2O − BYOL counts as: by a claim all three seeds agree, and the mean is above twice its standard error."""
    if len(differences) < SEEDS_OF_A_CLAIM:
        return f"nothing claimed: {len(differences)} of {SEEDS_OF_A_CLAIM} seeds"
    mean, error = np.mean(differences), np.std(differences, ddof=1) / math.sqrt(len(differences))
    if abs(mean) <= 2 * error or len({one > 0 for one in differences}) > 1:
        return "not separated at this budget"
    return "R2O beats BYOL" if mean > 0 else "BYOL beats R2O"


def byol_block(table: ResultsTable, rows: Rows) -> Block:
    """R2O against BYOL in the primary scores, seed by seed."""
    ours, theirs = rows.get("r2o", {}), rows.get("byol", {})
    lines = []
    for column in _primary(table):
        found = {
            seed: _difference(table, ours[seed], theirs[seed], column) for seed in sorted(ours.keys() & theirs.keys())
        }
        known = {seed: one for seed, one in found.items() if one is not None}
        shown = "; ".join(f"{seed}: {_points(one)}" for seed, one in known.items())
        mean = _points(float(np.mean(list(known.values())))) if known else NOTHING
        lines.append([_name(table.columns[column]), shown or NOTHING, mean, verdict(list(known.values()))])
    header = ["score", "R2O − BYOL by seed", "mean", "verdict"]
    return Block(title="R2O against BYOL at equal compute, percentage points", header=header, rows=lines)


def parts_block(table: ResultsTable, rows: Rows) -> Block:
    """Each part of R2O: the difference with seed 0, held against the range of R2O's seeds."""
    lines = []
    for column in _primary(table):
        means = [
            table.cells[row, column].spread.mean for row in rows.get("r2o", {}).values() if (row, column) in table.cells
        ]
        known = [one for one in means if one is not None]
        spread = max(known) - min(known) if len(known) >= SEEDS_OF_A_CLAIM else None
        for part, with_it, without in PARTS_OF_R2O:
            pair = rows.get(with_it, {}).get(0), rows.get(without, {}).get(0)
            found = None if None in pair else _difference(table, pair[0] or 0, pair[1] or 0, column)
            if found is not None:
                seen = "larger than R2O's seeds" if spread is not None and abs(found) > spread else "no difference seen"
                lines.append([part, _name(table.columns[column]), _points(found), _points(spread), seen])
    header = ["part", "score", "with − without, seed 0", "range of R2O's seeds", "seen"]
    return Block(title="Parts of R2O, percentage points", header=header, rows=lines)


def random_block(table: ResultsTable, rows: Rows) -> Block:
    """Whether each run is above both kinds of random weights, by paired intervals over images."""
    random = [place for place, row in enumerate(table.rows) if row.is_random]
    lines = []
    for method, by_seed in rows.items():
        for seed, row in sorted(by_seed.items()):
            cells = []
            for column in _primary(table):
                found = [compare_rows(table, row, other, column) for other in random]
                lows = [one.interval.low for one in found if one and one.interval]
                cells.append(NOTHING if not lows else "yes" if len(lows) == len(random) and min(lows) > 0 else "no")
            lines.append([f"{METHODS[method].title}, seed {seed}", *cells])
    header = ["weights", *(_name(table.columns[column]) for column in _primary(table))]
    return Block(title="Above both random rows, by paired 95 % intervals over images", header=header, rows=lines)


def _primary(table: ResultsTable) -> list[int]:
    return [place for place, column in enumerate(table.columns) if (column.first.name, column.score) in PRIMARY]


def _name(column: Column) -> str:
    return f"{column.title}, {column.score}, {column.first.data.name}"


def _difference(table: ResultsTable, ours: int, theirs: int, column: int) -> float | None:
    one = compare_rows(table, ours, theirs, column)
    return one.difference if one else None


def _points(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:+.2f}"
