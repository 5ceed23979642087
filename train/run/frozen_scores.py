"""What protocols on frozen features found for the backbone of a run, as lines of its model card."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.run_files import BACKBONE_NAME, evaluation_folder
from pipeline.artifacts.scores import SCORES_NAME, Scores, read_scores
from pipeline.foundation.files import refuse_link, sha256_of

MOST_FOLDERS_DOWN = 4  # below RUN/eval-frozen


def frozen_lines(run: Path) -> list[str]:
    """The headline of each protocol, one line for the backbone and one for each random one beside it.

    Results of other weights, or of a backbone that has been trained again since, are left out.

    Raises:
        InputError: a file of results is damaged, or a link.
    """
    refuse_link(run / evaluation_folder("frozen"))
    stored = [(folder, scores) for folder in _folders(run) if (scores := read_scores(folder)) is not None]
    if not stored:
        return []
    ours, lines = sha256_of(run / BACKBONE_NAME), dict[str, list[tuple[Path, Scores]]]()
    for folder, one in stored:
        if one.weights.sha256 in (None, ours):
            settings = {name: value for name, value in one.protocol.settings.items() if name != "seeds"}
            what = {"id": one.protocol.id, "settings": settings, "data": one.data.fingerprint}
            lines.setdefault(fingerprint(**what, weights=one.weights.model_dump()), []).append((folder, one))
    return [_line(run, group) for group in lines.values()]


def _folders(run: Path) -> list[Path]:
    """Folders that hold results, in order; no link is followed, and what was replaced, in a hidden folder, is none."""
    top, found = run / evaluation_folder("frozen"), []
    for place, folders, files in os.walk(top):
        folder = Path(place)
        deep = len(folder.relative_to(top).parts) == MOST_FOLDERS_DOWN
        folders[:] = [] if deep else sorted(name for name in folders if not name.startswith("."))
        found += [folder] if SCORES_NAME in files else []
    return found


def _line(run: Path, group: list[tuple[Path, Scores]]) -> str:
    folder, first = group[0]
    name = first.protocol.headline
    values = [value for _, one in group if (value := one.scores.get(name)) is not None]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    mean = f"{np.mean(values):.4f}{spread}" if values else "not to be scored"
    whose = "this backbone" if first.weights.sha256 else first.weights.label
    where = folder.relative_to(run)
    return f"{first.protocol.id} on {first.data.name} (`{where}`), {whose}: {name} {mean} over {len(values)} seeds."
