"""A run's checkpoints, each with its epoch and K, and a score drawn over them (Figure 3)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.run_files import CHECKPOINTS_FOLDER, CONFIG_NAME, RECORD_NAME
from pipeline.artifacts.seal import unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import atomic_writer, read_own
from pipeline.foundation.pictures import line_charts
from pipeline.foundation.settings import load_settings
from train.config.pretrain import PretrainSettings

CHECKPOINT_NAME = re.compile(r"step-(\d{8,})(?:-milestone)?\.pt")


class RunCheckpoint(NamedTuple):
    """A file of a run's `checkpoints`. `step`, `epoch`: that are done; `num_clusters`: K of the last step of them."""

    path: Path
    step: int
    epoch: float
    num_clusters: int


def checkpoints_of(run: Path) -> list[RunCheckpoint]:
    """Every kept checkpoint of a run, the oldest first; of two of one step, the milestone.

    Raises:
        InputError: this is no folder of a run, or its record or settings are damaged.
    """
    settings = load_settings(PretrainSettings, "pretrain", run / CONFIG_NAME)
    steps_per_epoch = max(1, _num_samples(run / RECORD_NAME) // settings.global_batch_size)
    found = {}
    for path in sorted((run / CHECKPOINTS_FOLDER).glob("step-*.pt"), reverse=True):
        if named := CHECKPOINT_NAME.fullmatch(path.name):
            step = int(named[1])
            num_clusters = settings.num_clusters(max(step - 1, 0) // steps_per_epoch)
            found[step] = RunCheckpoint(path, step, step / steps_per_epoch, num_clusters)
    return sorted(found.values(), key=lambda checkpoint: checkpoint.step)


def _num_samples(path: Path) -> int:
    try:
        content = read_own(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; --weights must be the folder of a run") from None
    try:
        return int(unsealed(json.loads(content), required=False)["samples"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path} is damaged, so that epochs are unknown; put a whole one back") from None


def draw_over_epochs(scores: Sequence[tuple[float, Mapping[str, float | None]]], path: Path) -> None:
    """Write a PNG: a small chart for each score that all checkpoints have, in percent over epochs.

    Args:
        scores: (epoch, score by name) of every checkpoint, in any order.
    """
    ordered = sorted(scores, key=lambda one: one[0])
    columns = {name: [of.get(name) for _, of in ordered] for name in ordered[0][1]}
    series = {f"{name}, %": [100 * one for one in of if one is not None] for name, of in columns.items()}
    whole = {name: values for name, values in series.items() if len(values) == len(ordered)}
    picture = line_charts(whole, x=[epoch for epoch, _ in ordered], x_label="epoch")
    with atomic_writer(path) as file:
        picture.save(file, format="PNG")
