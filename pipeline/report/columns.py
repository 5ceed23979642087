"""Which measurements may stand in one column: those of one protocol, equal settings and equal data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artifacts.fingerprint import differences
from pipeline.foundation.errors import InputError
from pipeline.report.measured import Measurement
from train.config.frozen import FROZEN_PROTOCOLS

EVERY_SCORE = "all"
_TITLES = {**{p.name: p.title for p in FROZEN_PROTOCOLS.values()}, "voc": "FCN fine-tuning"}
_ORDER = {name: place for place, name in enumerate(_TITLES)}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One score of one protocol under conditions that are equal for all measurements in it.

    Attributes:
        number: from 1, as tables and remarks name it.
        first: one of its measurements, for what all have in common.
        unlike: number of the column before of the same protocol and score, and each difference to it.
        notes: what the data sets say of themselves.
    """

    number: int
    score: str
    first: Measurement
    measurements: tuple[Measurement, ...]
    unlike: tuple[int, tuple[str, ...]] | None
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """What people call the protocol."""
        return _TITLES.get(self.first.name, self.first.name)

    @property
    def is_headline(self) -> bool:
        """Whether this is the score that tables show."""
        return self.score == self.first.headline

    @property
    def about(self) -> str:
        """The protocol's id, the score and the data in one line."""
        data = self.first.data
        images = ", ".join(f"{count} {part}" for part, count in data.images.items())
        content = f"content {data.fingerprint[:8]}" if data.fingerprint else "content not recorded"
        return f"[{self.number}] {self.first.protocol}, {self.score}; {data.name} ({data.layout}; {images}; {content})"


def columns_of(measurements: Sequence[Measurement], scores: Sequence[str] = ()) -> list[Column]:
    """Columns in the order of the protocols, then of the scores, then of the files.

    Args:
        scores: names of scores; none: each protocol's headline; `all`: every one.
    Raises:
        InputError: no protocol has such a score.
    """
    known = {name for one in measurements for name in one.scores}
    for score in scores:
        if score not in known and score != EVERY_SCORE:
            raise InputError(f"--score {score}: these results have none; there are {', '.join(sorted(known))}")
    groups: dict[tuple[int, int, str], list[Measurement]] = {}
    for one in measurements:
        for place, score in enumerate(_scores_of(one, scores)):
            key = (_ORDER.get(one.name, len(_ORDER)), place, f"{score}\n{one.conditions(score)}")
            groups.setdefault(key, []).append(one)
    columns: list[Column] = []
    for key in sorted(groups, key=lambda key: key[:2]):  # stable: columns of one protocol stay in the files' order
        columns.append(_column(groups[key], score=key[2].partition("\n")[0], before=columns))
    return columns


def _scores_of(one: Measurement, scores: Sequence[str]) -> list[str]:
    """The headline comes first."""
    if not scores:
        return [one.headline]
    if EVERY_SCORE in scores:
        return [one.headline, *(name for name in one.scores if name != one.headline)]
    return [name for name in dict.fromkeys(scores) if name in one.scores]


def _column(measurements: Sequence[Measurement], *, score: str, before: Sequence[Column]) -> Column:
    first = measurements[0]
    others = [column for column in before if (column.first.name, column.score) == (first.name, score)]
    unlike = differences(_told(first, score), _told(others[0].first, score)) if others else []
    return Column(
        number=len(before) + 1,
        score=score,
        first=first,
        measurements=tuple(measurements),
        unlike=(others[0].number, tuple(unlike)) if others else None,
        notes=tuple(dict.fromkeys(note for one in measurements for note in one.data.notes)),
    )


def _told(one: Measurement, score: str) -> dict[str, Any]:
    """The conditions as people read them: `differences` names what of it differs."""
    content = (one.data.fingerprint or "not recorded")[:12]
    data = {"name": one.data.name, "layout": one.data.layout, "images": one.data.images, "content": content}
    return {**one.compared_settings(score), "protocol": one.protocol, "data": data}
