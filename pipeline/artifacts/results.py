"""The schema of an evaluation's `results.json`: what model card, reports and later evaluations can rely on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import read_own

NOT_READ = "no results that this r2o reads; run the evaluation again, or move the file away"
RESULTS_FORMAT_VERSION = 2  # 1, of release 0.1.0, has no checksum


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
        inits: by the weights that it began with, as "run" and "random", each score's spread and the scores by seed.
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
            InputError: they are damaged, changed, of another format, or a link.
        """
        no_results = f"{path}: {NOT_READ}"
        loaded = read_results_json(path)
        if loaded is None:
            return None
        version = loaded.get("format_version")
        if version not in (1, RESULTS_FORMAT_VERSION):
            raise InputError(no_results)
        try:
            return cls.model_validate(unsealed(loaded, required=version != 1))
        except ValidationError:
            raise InputError(no_results) from None
        except ValueError as error:
            raise InputError(f"{path}: {error}; run the evaluation again, or move the file away") from None

    def spread(self, init: str, score: str) -> Spread:
        """One score's spread over the seeds. Raises KeyError where the evaluation has no such score."""
        return Spread(**self.inits[init][score])


def read_results_json(path: Path) -> dict[str, Any] | None:
    """The members of a `results.json` of any kind, unchecked; None where there is none.

    Raises:
        InputError: it is no JSON object, or a link.
    """
    try:
        loaded = json.loads(read_own(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError):
        loaded = None
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: {NOT_READ}")
    return loaded


def encode_results(members: Mapping[str, Any]) -> str:
    """Results as the text of `results.json`, members in the order given, then their checksum.

    Raises:
        ValueError: one is missing, or holds what JSON does not know.
    """
    Results.model_validate(members)
    return encode_json(sealed(members))


def encode_json(value: Mapping[str, Any]) -> str:
    """Indented JSON. Raises ValueError for NaN and infinities, which JSON does not know."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
