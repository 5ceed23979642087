"""Files of results below the paths that a user names. What is passed over is counted, never silently lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.artifacts.run_files import CHECKPOINTS_FOLDER, EVENTS_FOLDER, PANELS_FOLDER, RESULTS_NAME
from pipeline.foundation.errors import InputError

# Folders that hold many files and no results.
PASSED_OVER = frozenset({CHECKPOINTS_FOLDER, EVENTS_FOLDER, PANELS_FOLDER, "features", "__pycache__"})
MOST_LEVELS = 12
MOST_ENTRIES = 2_000_000


@dataclass
class FoundFiles:
    """Files by the order of the paths given, sorted below each.

    Attributes:
        links: files and folders that may be results and were not followed.
        deeper: folders more than MOST_LEVELS below a path given, which were not entered.
        unreadable: folders that could not be listed.
    """

    files: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    deeper: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)
    entries: int = 0


def find_results(places: Sequence[Path]) -> FoundFiles:
    """Every `results.json` at or below the places, each once.

    A place may be a link, for the user named it. Below it no link is followed, and folders of features, checkpoints,
    panels and events, and hidden ones, are not entered.

    Raises:
        InputError: a place is missing or is another file, or more lies below it than can be looked through.
    """
    found = FoundFiles()
    for place in places:
        if place.is_dir():
            _look_below(place, found)
        elif place.name == RESULTS_NAME and (place.is_file() or place.is_symlink()):
            found.files.append(place)
        elif place.exists():
            raise InputError(f"{place}: neither a folder nor a {RESULTS_NAME}; name the folder of a run or evaluation")
        else:
            raise InputError(f"{place} does not exist; name folders that hold {RESULTS_NAME}")
    once = {os.path.abspath(path): path for path in reversed(found.files)}
    found.files = [path for path in found.files if once[os.path.abspath(path)] is path]
    return found


def _look_below(place: Path, found: FoundFiles) -> None:
    waiting = [(place, 0)]
    while waiting:
        folder, level = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            found.unreadable.append(folder)
            continue
        found.entries += len(listed)
        if found.entries > MOST_ENTRIES:
            raise InputError(f"{place}: more than {MOST_ENTRIES:,} files below it; name the folders of the evaluations")
        folders = [entry for entry in listed if _may_hold_results(entry, found)]
        found.files += [folder / entry.name for entry in listed if _is_results(entry)]
        if level == MOST_LEVELS:
            found.deeper += [folder / entry.name for entry in folders]
        else:
            waiting += [(folder / entry.name, level + 1) for entry in reversed(folders)]


def _is_results(entry: os.DirEntry[str]) -> bool:
    return entry.name == RESULTS_NAME and entry.is_file(follow_symlinks=False)


def _may_hold_results(entry: os.DirEntry[str], found: FoundFiles) -> bool:
    """Whether to enter a folder; notes a link that would have been entered or read."""
    if entry.name in PASSED_OVER or entry.name.startswith("."):
        return False
    if entry.is_symlink():
        if entry.name == RESULTS_NAME or entry.is_dir():
            found.links.append(Path(entry.path))
        return False
    return entry.is_dir(follow_symlinks=False)
