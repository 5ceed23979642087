"""Files of results, of frozen features and of fine-tuning, as measurements of one shape."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import Results
from pipeline.artifacts.run_files import BACKBONE_NAME, RECORD_NAME
from pipeline.artifacts.scores import Scores, read_scores
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own, read_own
from pipeline.foundation.progress import Progress
from train.config.evals import EvalVocSettings

FINE_TUNING = "eval-voc"  # the id of the one protocol whose results name none
MANY_FILES = 200  # from here on, reading tells of its progress
TOLERANCE = 1e-6  # of a score beyond [0, 1]
# Settings that say which seeds and weights are scored, how a run goes, or what else is reported.
NOT_COMPARED = EvalVocSettings.NOT_CONTENT | {"seeds", "inits", "baselines", "bootstrap"}

_BATCH_NORM = {"random": "initial", "random-bn": "data"}  # of the weights that fine-tuning begins with, by init

_Score = Annotated[float, Field(ge=-TOLERANCE, le=1 + TOLERANCE, allow_inf_nan=False)]
_BY_SEED = TypeAdapter(dict[Annotated[int, Field(ge=0)], dict[str, _Score | dict[str, _Score | None] | None]])
_SCORES = TypeAdapter(dict[str, _Score | None])
_PER_CLASS = TypeAdapter(dict[str, dict[str, _Score | None]])
PerClass = Mapping[str, Mapping[str, float | None]]


class ReportedWeights(NamedTuple):
    """Whose weights. Those of equal `identity` are one row.

    `sha256`: of their file; None: random ones, or those of a run that is no longer beside its results.
    `run`: the fingerprint of that run.
    """

    label: str
    backbone: str
    batch_norm: str
    sha256: str | None = None
    run: str | None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes weights the same: their content, not what they are called."""
        return (self.backbone, self.batch_norm, self.sha256 or self.run or f"random: {self.label}")

    @property
    def is_random(self) -> bool:
        """Whether there is no file of them."""
        return self.sha256 is None and self.run is None

    @property
    def shown(self) -> str:
        """The label, with what it does not say: that batch norm has the statistics of the data."""
        return f"{self.label} (BN of the data)" if self.batch_norm == "data" and not self.is_random else self.label

    @property
    def short(self) -> str:
        """The first 8 digits of their hash, or of their run's."""
        return self.sha256[:8] if self.sha256 else f"run {self.run[:8]}" if self.run else "–"


class ReportedData(NamedTuple):
    """Which images. `fingerprint`: None where older results do not tell."""

    name: str
    layout: str
    fingerprint: str | None
    images: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One protocol on one set of weights with one seed.

    Attributes:
        path: its `results.json`.
        protocol: the id. `name`: what the protocol is called.
        scores, per_class: in [0, 1]; None where nothing could be scored.
        record: of a protocol on frozen features, whose counts by image lie beside.
    """

    path: Path
    protocol: str
    name: str
    headline: str
    settings: Mapping[str, Any]
    data: ReportedData
    weights: ReportedWeights
    seed: int
    scores: Mapping[str, float | None]
    per_class: PerClass
    record: Scores | None = None

    def compared_settings(self, score: str) -> dict[str, Any]:
        """The settings that have to be equal for this score to be compared."""
        left_out = NOT_COMPARED if score.startswith("report") else NOT_COMPARED | {"report_classes"}
        return _without(self.settings, left_out)

    def conditions(self, score: str) -> str:
        """A hash of all that has to be equal: the protocol's id, its settings, the content of the data."""
        data = self.data.fingerprint or {"layout": self.data.layout, "images": dict(self.data.images)}
        return fingerprint(id=self.protocol, settings=self.compared_settings(score), data=data, score=score)


class ReadFiles(NamedTuple):
    """What could be read, and why the rest could not, a line a file."""

    measurements: list[Measurement]
    damaged: list[str]


def read_measurements(paths: Sequence[Path]) -> ReadFiles:
    """The measurements of all files. One that is damaged is named and left out."""
    measurements: list[Measurement] = []
    damaged: list[str] = []
    progress = Progress("reading", len(paths), "results") if len(paths) >= MANY_FILES else None
    for path in paths:
        try:
            measurements += _read(path)
        except InputError as error:
            damaged.append(str(error))
        if progress:
            progress.advance(1)
    return ReadFiles(measurements, damaged)


def _read(path: Path) -> list[Measurement]:
    try:
        scores = read_scores(path.parent)
        if scores is not None:
            return [_of_frozen(path, scores)]
        results = Results.read(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if results is None:
        raise InputError(f"{path} was moved away meanwhile")
    try:
        fingerprint(settings=results.protocol)
    except (TypeError, ValueError):  # files of 0.1.0 have no checksum, so they may hold NaN
        raise InputError(f"{path}: its settings are not JSON; evaluate again") from None
    return _of_fine_tuning(path, results)


def _of_frozen(path: Path, scores: Scores) -> Measurement:
    if scores.protocol.headline not in scores.scores:
        raise InputError(f"{path}: has no score {scores.protocol.headline!r}, its headline; evaluate again")
    weights, data = scores.weights, scores.data
    return Measurement(
        path=path,
        protocol=scores.protocol.id,
        name=scores.protocol.name,
        headline=scores.protocol.headline,
        settings=scores.protocol.settings,
        data=ReportedData(data.name, data.layout, data.fingerprint, data.images, data.notes),
        weights=ReportedWeights(weights.label, weights.backbone, weights.batch_norm, weights.sha256),
        seed=scores.seed,
        scores=_checked(path, _SCORES, scores.scores),
        per_class=_checked(path, _PER_CLASS, scores.per_class),
        record=scores,
    )


def _of_fine_tuning(path: Path, results: Results) -> list[Measurement]:
    """One measurement for each of the weights that it began with, and each seed."""
    extra, folder = results.model_extra or {}, Path(os.path.abspath(path)).parent
    counts = {part: extra.get(f"{part}_images") for part in ("train", "val")}
    stored = extra.get("data")
    data = ReportedData(
        name="VOC layout",
        layout="voc",
        fingerprint=stored.get("fingerprint") if isinstance(stored, dict) else None,
        images={part: count for part, count in counts.items() if isinstance(count, int)},
    )
    sha256, found = _backbone_sha256(folder.parent, results.backbone.run_fingerprint), []
    for init, summary in results.inits.items():
        weights = ReportedWeights(
            label=init if init != "run" else folder.parent.name,
            backbone=results.backbone.name,
            batch_norm=_BATCH_NORM.get(init, "weights"),
            sha256=sha256 if init == "run" else None,
            run=results.backbone.run_fingerprint if init == "run" else None,
        )
        for seed, by_score in _checked(path, _BY_SEED, summary.get("seeds")).items():
            flat = {name: value for name, value in by_score.items() if not isinstance(value, dict)}
            per_class = {"mean_iou": by_score["iou"]} if isinstance(by_score.get("iou"), dict) else {}
            found.append(
                Measurement(
                    path=path,
                    protocol=FINE_TUNING,
                    name="voc",
                    headline="mean_iou",
                    settings=results.protocol,
                    data=data,
                    weights=weights,
                    seed=seed,
                    scores={"mean_iou": None, **flat},
                    per_class=per_class,
                )
            )
    return found


def _checked(path: Path, form: TypeAdapter[Any], value: object) -> Any:
    try:
        return form.validate_python(value)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "seeds"
        raise InputError(f"{path}: the scores are not what this r2o reads ({where}); evaluate again") from None


def _backbone_sha256(run: Path, run_fingerprint: str) -> str | None:
    """The hash of a run's weights, where the folder is still that run's: so its row is that of its frozen features."""
    try:
        record = json.loads(read_own(run / RECORD_NAME))
        if not isinstance(record, dict) or record.get("fingerprint") != run_fingerprint:
            return None
        with os.fdopen(open_own(run / BACKBONE_NAME), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, RecursionError):
        return None


def _without(settings: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    return {
        key: _without(value, keys) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in keys
    }
