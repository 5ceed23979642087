"""Folders of results: which are finished and unchanged, and what happens to those that are not.

OUT/<data>/<weights>/<protocol>/seed<k>/   results.json, per_image.npz, predictions.png
OUT/.replaced/…                            results of other settings, weights or images: nothing is deleted
OUT/summary.json                           the table, written last
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.artifacts.scores import PER_IMAGE_NAME, SCORES_NAME, Scores, read_counts, read_scores
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import refuse_link
from pipeline.foundation.progress import say
from train.config.frozen import FROZEN_PROTOCOLS

REPLACED_FOLDER, FEATURES_FOLDER = ".replaced", "features"
SEED_NAME = re.compile(r"seed(\d{1,19})")


def seed_folder(out: Path, *, data: str, label: str, protocol: str, seed: int) -> Path:
    """Where the results of one protocol on one backbone with one seed lie."""
    return out / data / label / protocol / f"seed{seed}"


def stored_scores(folder: Path) -> Scores | None:
    """The results in a folder, both files whole; None where there are none. Damaged ones are said and count as none.

    Raises:
        InputError: a file is a link.
    """
    for name in (SCORES_NAME, PER_IMAGE_NAME):
        refuse_link(folder / name)
    try:
        scores = read_scores(folder)
        if scores is not None:
            read_counts(folder, scores)
    except InputError as error:
        say(f"{str(error).partition(';')[0]}; made again")
        return None
    return scores


def set_aside_outdated(out: Path, *, data: str, label: str, is_right: Callable[[Scores, int], bool]) -> None:
    """Move results that must not stand beside the new ones into OUT/.replaced, and say so.

    Args:
        is_right: whether results, found in the folder of a seed, may stay.
    """
    for folder, seed in _seed_folders(out / data / label):
        if not (folder / SCORES_NAME).is_file():
            continue
        scores = stored_scores(folder)
        if scores is None or not is_right(scores, seed):
            _set_aside(out, folder)


def _seed_folders(folder: Path) -> Iterator[tuple[Path, int]]:
    for protocol in FROZEN_PROTOCOLS:
        for path in sorted((folder / protocol).glob("seed*")):
            if named := SEED_NAME.fullmatch(path.name):
                yield path, int(named[1])


def _set_aside(out: Path, folder: Path) -> None:
    """The first name that is free, so that nothing that was set aside before is lost."""
    refuse_link(out / REPLACED_FOLDER)
    base = out / REPLACED_FOLDER / folder.relative_to(out)
    base.parent.mkdir(parents=True, exist_ok=True)
    names = (base if number == 0 else base.with_name(f"{base.name}-{number}") for number in range(1_000_000))
    kept = next(path for path in names if not os.path.lexists(path))
    folder.rename(kept)
    say(f"{folder}: of other settings, weights or images, or damaged; moved to {kept}")
