"""The schema of an evaluation's `results.json`: what model card, reports and later evaluations can rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.foundation.errors import InputError

RESULTS_FORMAT_VERSION = 1


class BackboneOrigin(BaseModel):
    """The architecture that was scored, and the fingerprint of the run that made its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    run_fingerprint: str


class Spread(NamedTuple):
    """Mean of a score over its seeds, its sample standard deviation (null below 2 seeds), and their number."""

    mean: float | None
    std: float | None
    n: int


class Results(BaseModel):
    """What every evaluation writes; an evaluation may add members of its own.

    Attributes:
        fingerprint: of all that decides the numbers.
        protocol: the settings.
        inits: by the weights that it began with ("run", "random"), each score's spread and the scores by seed.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    format_version: int
    fingerprint: str
    protocol: dict[str, Any]
    backbone: BackboneOrigin
    versions: dict[str, str]
    inits: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Results | None:
        """The results at a path, None where there are none.

        Raises:
            InputError: they are damaged, or of another format.
        """
        try:
            found = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError):
            found = None
        if found is None or found.format_version != RESULTS_FORMAT_VERSION:
            raise InputError(f"{path}: no results that this r2o reads; run the evaluation again, or move the file away")
        return found

    def spread(self, init: str, score: str) -> Spread:
        """One score's spread over the seeds. Raises KeyError where the evaluation has no such score."""
        return Spread(**self.inits[init][score])


def encode_results(members: Mapping[str, Any]) -> str:
    """Results as the text of `results.json`, members in the order given. Raises ValueError where one is missing."""
    Results.model_validate(members)
    return encode_json(members)


def encode_json(value: Mapping[str, Any]) -> str:
    """Indented JSON. Raises ValueError for NaN and infinities, which JSON does not know."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
