"""What an evaluation says at its end: a row a protocol, a column the weights, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import encode_json
from pipeline.artifacts.run_files import SUMMARY_NAME
from pipeline.artifacts.scores import Scores
from pipeline.artifacts.seal import sealed
from pipeline.foundation.files import write_atomic
from train.evals.frozen.over_run import draw_over_epochs
from train.evals.frozen.scoring.evaluation import Cell, FrozenEvaluation


class SummaryRow(NamedTuple):
    """One protocol on one set of images: by weights, the results of every seed."""

    data: str
    protocol: str
    headline: str
    by_label: Mapping[str, Sequence[Scores]]


def summary_rows(evaluation: FrozenEvaluation, scores: Mapping[Cell, Scores]) -> list[SummaryRow]:
    """The rows of the table, in the order in which people named the images."""
    rows = []
    for number, image_set in enumerate(evaluation.image_sets):
        for protocol in image_set.plan.chosen:
            by_label = {
                subject.label: [
                    one for cell, one in scores.items() if cell[:2] == (number, place) and cell.protocol == protocol
                ]
                for place, subject in enumerate(evaluation.subjects)
            }
            rows.append(SummaryRow(image_set.name, protocol.name, protocol.headline, by_label))
    return rows


def table_of_rows(rows: Sequence[SummaryRow], labels: Sequence[str]) -> str:
    """Headlines in percent, mean ± sample standard deviation over seeds where there are several."""
    titles = [f"{row.data} {row.protocol} ({row.headline}, %)" for row in rows]
    cells = [[_cell(row, label) for label in labels] for row in rows]
    widths = [max(len(label), *(len(row[i]) for row in cells)) for i, label in enumerate(labels)]
    first = max(map(len, titles))
    lines = [" " * first + "".join(f"  {label:>{width}}" for label, width in zip(labels, widths, strict=True))]
    for title, row in zip(titles, cells, strict=True):
        lines.append(f"{title:<{first}}" + "".join(f"  {c:>{w}}" for c, w in zip(row, widths, strict=True)))
    return "\n".join(lines)


def seconds_by_phase(results: Iterable[Scores]) -> str:
    """Seconds of each phase over all results, those that were finished before among them."""
    total: dict[str, float] = {}
    for scores in results:
        for name, seconds in scores.seconds.items():
            total[name] = total.get(name, 0.0) + seconds
    return "seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in sorted(total.items()))


def draw_epochs(evaluation: FrozenEvaluation, rows: Sequence[SummaryRow]) -> list[Path]:
    """Where several checkpoints of a run were scored, a PNG a row: its scores, mean over seeds, over epochs."""
    epochs = {subject.label: subject.epoch for subject in evaluation.subjects if subject.epoch is not None}
    if len(epochs) < 2:
        return []
    paths = []
    for row in rows:
        paths.append(evaluation.out / row.data / f"{row.protocol}_over_epochs.png")
        draw_over_epochs([(epoch, _means(row.by_label[label])) for label, epoch in epochs.items()], paths[-1])
    return paths


def _means(results: Sequence[Scores]) -> dict[str, float | None]:
    """By score, the mean over seeds; None where one of them has none."""
    values = {name: [one.scores[name] for one in results] for name in results[0].scores}
    return {
        name: None if None in of else float(np.mean([v for v in of if v is not None])) for name, of in values.items()
    }


def write_summary(evaluation: FrozenEvaluation, rows: Sequence[SummaryRow]) -> Path:
    """Write OUT/summary.json, which says that all results are there: fingerprints and headlines, by seed."""
    path = evaluation.out / SUMMARY_NAME
    plain = [
        {
            "data": row.data,
            "protocol": row.protocol,
            "headline": row.headline,
            "weights": {
                label: [
                    {"seed": one.seed, "fingerprint": one.fingerprint, row.headline: one.scores[row.headline]}
                    for one in results
                ]
                for label, results in row.by_label.items()
            },
        }
        for row in rows
    ]
    write_atomic(path, encode_json(sealed({"fingerprint": fingerprint(rows=plain), "rows": plain})))
    return path


def _cell(row: SummaryRow, label: str) -> str:
    found = [one.scores[row.headline] for one in row.by_label.get(label, ())]
    values = [100 * value for value in found if value is not None]
    if not values:
        return "–"
    spread = f" ± {float(np.std(values, ddof=1)):.1f}" if len(values) > 1 else ""
    return f"{float(np.mean(values)):.1f}{spread}"
