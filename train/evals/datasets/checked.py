"""The images of a list, every file of which has been read and checked once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import Progress
from train.evals.datasets.annotated import UNLABELLED, Annotated
from train.evals.datasets.decode import decode_picture, no_foreground, read_listed
from train.evals.datasets.found import FoundPart, ListedImage

_THREADS, _AT_ONCE = 4, 64  # images that are decoded in memory
_HASH = 32


class CheckedImages:
    """The images of one part, in its order. Of each only the SHA-256 of its files is kept.

    Attributes:
        names: of the images.
        digest: hex SHA-256 of every name, file and fact.
        notes: what was counted that results must say.

    Raises:
        InputError: a file is missing, damaged, or does not fit its image, or no image has anything to be found.
    """

    def __init__(self, part: FoundPart, *, background: int | None) -> None:
        self._part, self._background = part, background
        self._hashes: list[bytes] = []
        digest, counts = hashlib.sha256(), Counter[str]()
        progress = Progress(f"check {part.title}", len(part.entries), "images")
        for hashes, sample in self._read_all():
            digest.update(hashes)
            self._hashes.append(hashes)
            counts.update(_shown(sample, background))
            progress.advance(1)
        self.names = tuple(entry.name for entry in part.entries)
        self.digest = digest.hexdigest()
        self.notes = tuple(self._judged(counts))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Annotated:
        """One image. Raises InputError where its files have changed since the list was opened."""
        entry = self._part.entries[index]
        hashes, sample = _read(entry)
        if hashes != self._hashes[index]:  # or scores would be kept under the digest of other files
            beside = " or its annotation" if entry.files else ""
            raise InputError(f"{entry.image}{beside} changed since it was first read; run the same command again")
        return sample

    @property
    def image_digest(self) -> str:
        """As `digest`, of the images without their annotations."""
        return self.digest_of([replace(entry, files=(), facts=b"") for entry in self._part.entries])

    def digest_of(self, entries: Sequence[ListedImage]) -> str:
        """The digest of these images with other annotations; of the files only those that are new are read."""
        known: dict[Path, bytes] = {}
        for entry, hashes in zip(self._part.entries, self._hashes, strict=True):
            for place, path in enumerate((entry.image, *entry.files), start=2):
                known[path] = hashes[place * _HASH : (place + 1) * _HASH]
        digest = hashlib.sha256()
        for entry in entries:
            digest.update(hashlib.sha256(entry.name.encode()).digest() + hashlib.sha256(entry.facts).digest())
            for path in (entry.image, *entry.files):
                digest.update(known.get(path) or hashlib.sha256(read_listed(path)).digest())
        return digest.hexdigest()

    def contents(self) -> dict[bytes, str]:
        """SHA-256 of each image's file → its name."""
        return {h[2 * _HASH : 3 * _HASH]: name for h, name in zip(self._hashes, self.names, strict=True)}

    def _read_all(self) -> Iterator[tuple[bytes, Annotated]]:
        """Every image in order, a few at a time in threads, so that memory stays bounded."""
        entries = self._part.entries
        with ThreadPoolExecutor(max_workers=_THREADS) as pool:
            for start in range(0, len(entries), _AT_ONCE):
                yield from pool.map(_read, entries[start : start + _AT_ONCE])

    def _judged(self, counts: Counter[str]) -> Iterator[str]:
        """Notes on annotations that some images are without. Raises InputError where all are."""
        total, part = len(self.names), self._part
        for annotation, found, missing in (
            ("labels", "labelled", "no pixel of a class but the background"),
            ("objects", "with objects", "no object"),
            ("boxes", "with boxes", "no box"),
        ):
            if annotation not in part.has or counts[found] == total:
                continue
            if not counts[found]:
                if annotation == "boxes":
                    raise InputError(f"{part.where}: none of {total} images has a box; choose another list")
                raise no_foreground(part.entries[0].files[0].parent, total)
            yield f"{total - counts[found]} of {total} images of {part.title} have {missing}"


def _read(entry: ListedImage) -> tuple[bytes, Annotated]:
    """The SHA-256 of name, facts and files, one after the other, and the decoded image."""
    data, contents = read_listed(entry.image), [read_listed(path) for path in entry.files]
    hashes = b"".join(hashlib.sha256(part).digest() for part in (entry.name.encode(), entry.facts, data, *contents))
    return hashes, entry.annotate(decode_picture(entry.image, data), contents)


def _shown(sample: Annotated, background: int | None) -> Iterator[str]:
    """What an image has."""
    if sample.labels is not None:
        labels = sample.labels
        if np.any((labels != UNLABELLED) if background is None else (labels != UNLABELLED) & (labels != background)):
            yield "labelled"
    if sample.objects is not None and sample.objects.classes:
        yield "with objects"
    if sample.boxes is not None and len(sample.boxes):
        yield "with boxes"
