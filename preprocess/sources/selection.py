"""Which of the images that are there are wanted: classes and names from files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.listing import Listing, Source

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
            lines = set((wanted or {}).values())
            missing = sorted(lines - self._seen)
            if missing:
                first = ", ".join(os.fsdecode(name) for name in missing[:SHOWN])
                raise InputError(
                    f"{self._files[what]}: {len(missing)} of {len(lines)} {what} match no image ({first}"
                    f"{', …' if len(missing) > SHOWN else ''}); correct the file"
                )

    def _is_wanted(self, source: Source) -> bool:
        has_class, has_name = self._has_class(source), self._has_name(source)
        return has_class and has_name

    def _has_class(self, source: Source) -> bool:
        if self._classes is None:
            return True
        first, slash, _ = source.name.partition(b"/")
        own = source.class_name.encode() if source.class_name is not None else first if slash else b""
        return self._note(self._classes.get(own))

    def _has_name(self, source: Source) -> bool:
        if self._names is None:
            return True
        return self._note(self._names.get(source.name, self._names.get(source.name.rpartition(b"/")[2])))

    def _note(self, line: bytes | None) -> bool:
        if line is not None:
            self._seen.add(line)
        return line is not None


def _lines(path: Path | None, what: str, *, first_word: bool) -> dict[bytes, bytes] | None:
    """The lines of a file by what they match: themselves, and their first word where a comment may follow that."""
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise InputError(f"shards.source.{what}={path}: cannot be read ({error.strerror})") from None
    lines = [line for line in lines if line and not line.startswith(b"#")]
    if not lines:
        raise InputError(f"shards.source.{what}={path}: names nothing; give one a line")
    return {line.split()[0]: line for line in lines if first_word} | {line: line for line in lines}
