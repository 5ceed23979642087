"""What `r2o run` says at its end of the evaluations of its run."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.report.columns import Column
from pipeline.report.compare import RowComparison
from pipeline.report.one_run import FineTuningBudget, RunFindings
from pipeline.report.shown.blocks import Block
from pipeline.report.shown.views import NOTHING, spread_text
from pipeline.report.statistics import INTERVAL_LEVEL

SHORT_FINE_TUNING = 2000  # iterations
_HEADERS = {"linear": "linear segmentation\nmIoU", "voc": "fine-tuned\nmIoU"}
_RANDOM = {
    "random": "weights as they are built",
    "random-bn": "the same weights, with the batch-norm statistics of training images",
}


def blocks_of_run(found: RunFindings) -> list[Block]:
    """The table, the paired differences and what they show, and what fine-tuning shows."""
    blocks = [_table(found)]
    if found.over_random:
        blocks.append(_differences(found))
    if found.budget:
        blocks.append(Block(title=fine_tuning_shows(found.budget)))
    return blocks


def fine_tuning_shows(budget: FineTuningBudget) -> str:
    """What a fine-tuned score can tell at this budget, whichever weights are ahead."""
    iterations, batch, images = budget
    done = f"Fine-tuning trained every weight, {iterations:,} iterations of {batch} crops from {images:,} images."
    if iterations >= SHORT_FINE_TUNING:
        return f"{done} Its score is of pretraining and of that training together."
    return (
        f"{done} So short a training on so few images learns most of what its score measures by itself. "
        "Whichever weights are ahead in it, frozen features are the measure of pretraining."
    )


def _table(found: RunFindings) -> Block:
    table = found.table
    order = [*found.runs, *(place for place in range(len(table.rows)) if place not in found.runs)]
    columns, rows = range(len(table.columns)), []
    for place in order:
        cells = (table.cells.get((place, column)) for column in columns)
        rows.append([_name(found, place), *(spread_text(cell.spread) if cell else NOTHING for cell in cells)])
    for one in found.references:
        rows.append([one.title, *(spread_text(one.spread) if column == one.column else "" for column in columns)])
    header = ["weights", *(_header(column) for column in table.columns)]
    return Block(title="What the evaluations found, in percent", header=header, rows=rows, lines=[*_legend(found)])


def _name(found: RunFindings, place: int) -> str:
    return "the run" if found.runs == [place] else found.table.rows[place].shown


def _header(column: Column) -> str:
    if column.first.name == "abo":
        return f"ABO\nK = {column.first.settings.get('clusters')}"
    return _HEADERS.get(column.first.name, f"{column.title}\n{column.score}")


def _legend(found: RunFindings) -> Iterator[str]:
    for row in found.table.rows:
        if row.is_random and row.label in _RANDOM:
            yield f"{row.label}: {_RANDOM[row.label]}."
    if found.references:
        yield "ABO: each object's best overlap with any refined mask. Below the weights stands what it is read beside."
    if any(cell.spread.std is not None for cell in found.table.cells.values()):
        yield "Mean ± sample standard deviation over (n) seeds."


def _differences(found: RunFindings) -> Block:
    images = found.table.columns[found.over_random[0].column].first.data.images.get("val")
    lines = [_difference(found, one) for one in found.over_random]
    title = (
        f"Linear segmentation, paired over the same {images} images; percentage points, {INTERVAL_LEVEL:.0%} interval "
        f"(bootstrap of {found.table.resamples:,} resamples)"
    )
    return Block(title=title, lines=[*lines, _verdict(found)])


def _difference(found: RunFindings, one: RowComparison) -> str:
    pair = f"{_name(found, one.ours)} − {_name(found, one.theirs)}"
    if one.difference is None or one.interval is None:
        return f"{pair}: no interval ({one.why or 'no score'})"
    low, high = (f"{100 * bound:+.2f}" for bound in one.interval)
    return f"{pair}: {100 * one.difference:+.2f} [{low}, {high}]"


def _verdict(found: RunFindings) -> str:
    rivals = dict.fromkeys(found.table.rows[one.theirs].shown for one in found.over_random)
    if not found.not_beaten:
        return f"In linear segmentation the run beats {' and '.join(rivals)}: the interval lies above 0."
    return (
        f"It is not shown that the run beats {' and '.join(dict.fromkeys(found.not_beaten))} in linear segmentation: "
        "the lower end of the interval is not above 0."
    )
