"""Every pair of (weights, seed) of an evaluation is scored once, stored at once, and taken up by a later call.

A trial is `<init>-seed<seed>.json`, written last, beside its picture of the same name. One with another fingerprint is
made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import encode_json
from pipeline.foundation.files import sha256_of, write_atomic
from train.models.backbone_file import ExportedBackbone
from train.models.initial import InitName

TRIAL_FORMAT_VERSION = 1


class Trial(NamedTuple):
    """Which weights a trial begins with, and its seed."""

    init: InitName
    seed: int

    @property
    def name(self) -> str:
        """Of its files, without suffix."""
        return f"{self.init}-seed{self.seed}"


class Outcome(NamedTuple):
    """What scoring a trial gives: plain JSON values, and a PNG for people."""

    record: dict[str, Any]
    picture: bytes


@dataclass(frozen=True, kw_only=True)
class TrialSet:
    """The trials of one evaluation, and all that decides their numbers.

    Attributes:
        protocol: the settings that decide them, as plain JSON values.
        version: of the evaluation's code; raised where it gives other numbers for equal settings.
        data: digests of the images and labels.
        backbone_sha256: of the file that `backbone` was read from.
        folder: where the trials lie.
    """

    inits: Sequence[InitName]
    seeds: Sequence[int]
    protocol: Mapping[str, Any]
    version: int
    data: Mapping[str, Any]
    backbone: ExportedBackbone
    backbone_sha256: str
    folder: Path

    @property
    def trials(self) -> list[Trial]:
        """All of them, in the order in which they are done."""
        return [Trial(init, seed) for seed in self.seeds for init in self.inits]

    def fingerprint_of(self, trial: Trial) -> str:
        """Hash of all that decides a trial. A random init takes only the backbone's name and normalisation."""
        backbone = self.backbone
        weights = {"sha256": self.backbone_sha256} if trial.init == "run" else {"random": backbone.name}
        return fingerprint(
            protocol=self.protocol,
            version=self.version,
            weights={**weights, "mean": backbone.mean, "std": backbone.std},
            data=self.data,
            pair=list(trial),
        )

    def fingerprint(self, **reported: object) -> str:
        """Hash of all trials and of what is reported of them."""
        pairs = {f"{trial.init}-{trial.seed}": self.fingerprint_of(trial) for trial in self.trials}
        return fingerprint(pairs=pairs, **reported, run=self.backbone.fingerprint)

    def records(self, score: Callable[[Trial], Outcome]) -> dict[Trial, dict[str, Any]]:
        """The record of every trial: as stored where it is finished and unchanged, else scored now and stored."""
        found = {trial: self._finished(trial) for trial in self.trials}
        return {trial: record or self._store(trial, score(trial)) for trial, record in found.items()}

    def picture(self, trial: Trial) -> bytes:
        """The PNG of a finished trial."""
        return self._picture_path(trial).read_bytes()

    def _store(self, trial: Trial, outcome: Outcome) -> dict[str, Any]:
        """The picture first, the record last."""
        write_atomic(self._picture_path(trial), outcome.picture)
        record = {
            "format_version": TRIAL_FORMAT_VERSION,
            "fingerprint": self.fingerprint_of(trial),
            "predictions_sha256": sha256_of(self._picture_path(trial)),
            **outcome.record,
        }
        write_atomic(self._path(trial), encode_json(record))
        return record

    def _finished(self, trial: Trial) -> dict[str, Any] | None:
        """What `_store` left, if it is whole and of the same fingerprint."""
        stored, picture = read_stored(self._path(trial)), self._picture_path(trial)
        is_ours = stored.get("format_version") == TRIAL_FORMAT_VERSION
        if not is_ours or stored["fingerprint"] != self.fingerprint_of(trial) or not picture.is_file():
            return None
        if stored["predictions_sha256"] != sha256_of(picture):
            return None
        print(f"{trial.init} seed {trial.seed}: finished before and unchanged", file=sys.stderr)
        return stored

    def _path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.name}.json"

    def _picture_path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.name}.png"


def remove_outdated(path: Path, identity: str) -> None:
    """Remove results of another fingerprint: they must not stand beside trials of this one."""
    if read_stored(path).get("fingerprint") != identity:
        path.unlink(missing_ok=True)


def read_stored(path: Path) -> dict[str, Any]:
    """A stored JSON object; empty where there is none, or what is there is none."""
    try:
        loaded = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
