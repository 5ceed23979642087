"""Which of the images that are there are wanted: classes and names from files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.sample import source_path
from preprocess.config import SourceSettings
from preprocess.listing import Listing, Source

SHOWN = 3


class Selection:
    """Fills listings, and knows at the end which wanted classes and names were nowhere."""

    def __init__(self, settings: SourceSettings) -> None:
        self._classes = _lines(settings.classes, "classes", first_word=True)
        self._names = _lines(settings.names, "names", first_word=False)
        self._seen: set[bytes] = set()
        self._files = {"classes": settings.classes, "names": settings.names}

    def add(self, listing: Listing, found: Iterable[Source | None]) -> None:
        """Append what is wanted; None stands for an entry that is no image."""
        if self._classes is None and self._names is None:
            for source in found:
                if source is None:
                    listing.ignored += 1
                else:
                    listing.add(source)
            return
        for source in found:
            if source is None:
                listing.ignored += 1
            elif self._is_wanted(source):
                listing.add(source)

    def check(self) -> None:
        """Raises InputError where a class or a name of the files matched no image."""
        for what, wanted in (("classes", self._classes), ("names", self._names)):
            missing = sorted((wanted or set()) - self._seen)
            if missing:
                first = ", ".join(os.fsdecode(name) for name in missing[:SHOWN])
                raise InputError(
                    f"{self._files[what]}: {len(missing)} of {len(wanted or ())} {what} match no image ({first}"
                    f"{', …' if len(missing) > SHOWN else ''}); correct the file"
                )

    def _is_wanted(self, source: Source) -> bool:
        return self._has_class(source) and self._has_name(source)

    def _has_class(self, source: Source) -> bool:
        if self._classes is None:
            return True
        first, slash, _ = source.name.partition(b"/")
        own = source_path(source.class_name) if source.class_name is not None else first if slash else b""
        return self._note({own} & self._classes)

    def _has_name(self, source: Source) -> bool:
        if self._names is None:
            return True
        return self._note({source.name, source.name.rpartition(b"/")[2]} & self._names)

    def _note(self, matched: set[bytes]) -> bool:
        self._seen |= matched
        return bool(matched)


def _lines(path: Path | None, what: str, *, first_word: bool) -> set[bytes] | None:
    """The lines of a file; of each the first word where what follows is a comment or a number."""
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise InputError(f"shards.source.{what}={path}: cannot be read ({error.strerror})") from None
    found = {(line.split()[0] if first_word else line) for line in lines if line and not line.startswith(b"#")}
    if not found:
        raise InputError(f"shards.source.{what}={path}: names nothing; give one a line")
    return found
