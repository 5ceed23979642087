"""Every pair of (weights, seed) of an evaluation is scored once, stored at once, and taken up by a later call.

A trial is `<init>-seed<seed>.json`, written last, beside its picture of the same name. One with another fingerprint is
made again, and so is one that was changed after it was written. No link is followed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import RESULTS_FORMAT_VERSION, Results, encode_json
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import read_own, write_atomic
from pipeline.foundation.progress import say
from train.models.backbone_file import ExportedBackbone
from train.models.initial import MEASURED_IMAGES, InitName

TRIAL_FORMAT_VERSION = 2  # 1, of release 0.1.0, has no checksum
RESULTS_BEGIN = re.compile(rb'\{\s*"format_version": ([0-9]{1,9}),')  # also of those that are damaged further on


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
        """Hash of all that decides a trial. A random init takes only the backbone's name and normalisation.

        The images that "random-bn" is measured on are those of `data`, in the size that `protocol` has.
        """
        backbone = self.backbone
        weights: dict[str, Any] = {"random": backbone.name}
        if trial.init == "run":
            weights = {"sha256": self.backbone_sha256}
        elif trial.init == "random-bn":
            weights |= {"measured_images": MEASURED_IMAGES}
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

    def records(
        self, score: Callable[[Trial], Outcome], *, fits: Callable[[Mapping[str, Any]], bool]
    ) -> dict[Trial, dict[str, Any]]:
        """The record of every trial: as stored where it is finished and unchanged, else scored now and stored.

        Args:
            fits: whether a stored record can be what `score` gave. Those of release 0.1.0 have no checksum.
        Raises:
            InputError: a file is a link, or of a newer r2o.
        """
        found = {trial: self._finished(trial, fits) for trial in self.trials}
        return {trial: record or self._store(trial, score(trial)) for trial, record in found.items()}

    def picture(self, trial: Trial) -> bytes:
        """The PNG of a finished trial."""
        return read_own(self._picture_path(trial))

    def _store(self, trial: Trial, outcome: Outcome) -> dict[str, Any]:
        """The picture first, the record last."""
        write_atomic(self._picture_path(trial), outcome.picture)
        record = {
            "format_version": TRIAL_FORMAT_VERSION,
            "fingerprint": self.fingerprint_of(trial),
            "predictions_sha256": hashlib.sha256(outcome.picture).hexdigest(),
            **outcome.record,
        }
        write_atomic(self._path(trial), encode_json(sealed(record)))
        return record

    def _finished(self, trial: Trial, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """What `_store` left, if it is whole and of the same fingerprint."""
        path = self._path(trial)
        try:
            stored = _read_record(path)
            if stored is None or stored.get("fingerprint") != self.fingerprint_of(trial):
                return None
            if not fits(stored):
                raise ValueError("it is no record of this evaluation")
            path = self._picture_path(trial)
            if stored.get("predictions_sha256") != hashlib.sha256(read_own(path)).hexdigest():
                raise ValueError("its checksum does not fit")
        except InputError:
            raise
        except FileNotFoundError:
            say(f"{path} is missing; scored again")
            return None
        except (ValueError, RecursionError):
            say(f"{path} was changed after it was written; scored again")
            return None
        say(f"{trial.init} seed {trial.seed}: finished before and unchanged")
        return stored

    def _path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.name}.json"

    def _picture_path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.name}.png"


def remove_outdated(path: Path, identity: str) -> None:
    """Remove results that are damaged or of another fingerprint: they must not stand beside trials of this one.

    Raises:
        InputError: what lies there is a link, of a newer r2o, or nothing that an evaluation wrote.
    """
    try:
        begins = RESULTS_BEGIN.match(read_own(path))
    except FileNotFoundError:
        return
    if begins is None:
        raise InputError(f"{path} is there, and is no file of results; move it away, or choose another --out")
    if int(begins[1]) > RESULTS_FORMAT_VERSION:
        raise _of_newer(path, int(begins[1]))
    try:
        results = Results.read(path)
    except InputError:
        results = None
    if results is None or results.fingerprint != identity:
        path.unlink(missing_ok=True)


def _of_newer(path: Path, version: object) -> InputError:
    return InputError(f"{path} is of a newer r2o (format {version!r}); go on with that one, or choose another --out")


def _read_record(path: Path) -> dict[str, Any] | None:
    """A stored trial; None where there is none.

    Raises:
        ValueError: it is damaged. InputError: it is of a newer r2o, or a link.
    """
    try:
        loaded = json.loads(read_own(path))
    except FileNotFoundError:
        return None
    version = loaded.get("format_version") if isinstance(loaded, dict) else None
    record = unsealed(loaded, required=version != 1)
    if version not in (1, TRIAL_FORMAT_VERSION):
        raise _of_newer(path, version)
    return record
