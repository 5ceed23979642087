"""The schema of `results.json` of a protocol on frozen features, and of `per_image.npz` beside it.

One folder holds one protocol on one backbone with one seed. `results.json` is written last and names the other's hash.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.results import encode_json, read_results_json
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import read_own, write_atomic

SCORES_FORMAT, SCORES_FORMAT_VERSION = "r2o.scores", 1
SCORES_NAME, PER_IMAGE_NAME = "results.json", "per_image.npz"
CountKind = Literal["mean", "iou"]


class ImageCounts(NamedTuple):
    """What each image adds to a score (`score_of`): arrays (n,) for "mean", (n, classes) for "iou"."""

    kind: CountKind
    value: Float64[np.ndarray, "n ..."]
    weight: Float64[np.ndarray, "n ..."]


def score_of(counts: ImageCounts) -> float | None:
    """The score over all images. None where no weight is left.

    A "mean" is sum(value) / sum(weight). An "iou" is the mean over classes of sum(value) / sum(weight) over images;
    classes whose weights sum to 0 are left out.
    """
    value, weight = np.atleast_1d(counts.value.sum(0)), np.atleast_1d(counts.weight.sum(0))
    counted = weight > 0
    return float((value[counted] / weight[counted]).mean()) if counted.any() else None


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ProtocolRecord(_Strict):
    """Which protocol, with all its settings. `headline` names one of the scores."""

    id: str
    name: str
    headline: str
    settings: dict[str, Any]


class WeightsRecord(_Strict):
    """Whose weights. `loaded`: share of the backbone's weights that came from the file; 0 for random ones.

    `batch_norm`: where its running statistics are from: the weights, the data, or nowhere (mean 0, variance 1).
    """

    label: str
    backbone: str
    format: str
    sha256: str | None
    batch_norm: Literal["weights", "data", "initial"]
    loaded: float


class DataRecord(_Strict):
    """Which images. `images`: how many, by part."""

    name: str
    layout: str
    fingerprint: str
    images: dict[str, int]
    notes: tuple[str, ...]


class PerImageRecord(_Strict):
    """The hash of the file beside, and the kind of each score in it."""

    sha256: str
    kinds: dict[str, CountKind]


class Scores(_Strict):
    """The content of `results.json`. Scores lie in [0, 1], null where nothing could be scored."""

    format: Literal["r2o.scores"]
    format_version: Literal[1]
    fingerprint: str
    protocol: ProtocolRecord
    weights: WeightsRecord
    data: DataRecord
    seed: int
    scores: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]
    chosen: dict[str, Any]
    seconds: dict[str, float]
    per_image: PerImageRecord
    versions: dict[str, str]


def write_scores(
    folder: Path, scores: Mapping[str, Any], *, names: tuple[str, ...], counts: Mapping[str, ImageCounts]
) -> None:
    """Write both files, `results.json` last. `scores` has all members of `Scores` but formats and `per_image`."""
    arrays: dict[str, Any] = {"names": np.asarray(names, dtype=np.str_)}
    for name, one in counts.items():
        arrays |= {f"{name}.value": np.asarray(one.value, float), f"{name}.weight": np.asarray(one.weight, float)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    content = buffer.getvalue()
    members = {
        "format": SCORES_FORMAT,
        "format_version": SCORES_FORMAT_VERSION,
        **scores,
        "per_image": {
            "sha256": hashlib.sha256(content).hexdigest(),
            "kinds": {name: one.kind for name, one in counts.items()},
        },
    }
    Scores.model_validate(members)
    write_atomic(folder / PER_IMAGE_NAME, content)
    write_atomic(folder / SCORES_NAME, encode_json(sealed(members)))


def read_scores(folder: Path) -> Scores | None:
    """The `results.json` that `write_scores` left; None where there is none, or that of a fine-tuning.

    `read_counts` says whether the file beside it is whole.

    Raises:
        InputError: they are damaged, changed, of another format, or links.
    """
    path = folder / SCORES_NAME
    loaded = read_results_json(path)
    if loaded is None or loaded.get("format") != SCORES_FORMAT:
        return None
    try:
        return Scores.model_validate(unsealed(loaded, required=True))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(f"{path}: {where} is not what this r2o reads; evaluate again, or move the file away") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}; evaluate again, or move the file away") from None


def read_counts(folder: Path, scores: Scores) -> tuple[tuple[str, ...], dict[str, ImageCounts]]:
    """Names of the images, and what each adds to every score.

    Raises:
        InputError: the file is missing, or not the one that `results.json` names.
    """
    path = folder / PER_IMAGE_NAME
    try:
        content = read_own(path)
    except OSError:
        raise InputError(f"{path} is missing; evaluate again") from None
    if hashlib.sha256(content).hexdigest() != scores.per_image.sha256:
        raise InputError(f"{path} is not the file that {SCORES_NAME} names; evaluate again")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        names = tuple(arrays["names"].tolist())
        kinds = scores.per_image.kinds
        return names, {n: ImageCounts(k, arrays[f"{n}.value"], arrays[f"{n}.weight"]) for n, k in kinds.items()}
