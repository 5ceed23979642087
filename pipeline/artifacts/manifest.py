"""A finished set of shards: what is in it, and how a reader finds a sample without scanning.

`manifest.json` is written last, so its existence means that the set is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.errors import InputError

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardStats(_Record):
    """One shard of a set: `bytes` and hex `sha256` of its tar, hex `index_sha256` of its index."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_name(self) -> str:
        """File name of the index that belongs to the tar."""
        return str(Path(self.name).with_suffix(".index"))


class IndexEntry(_Record):
    """Where one sample lies in its tar: per member its (offset, size) in bytes."""

    key: str
    members: dict[str, tuple[int, int]]


class ShardIndex(_Record):
    """The samples of one shard, in the order of the tar."""

    entries: tuple[IndexEntry, ...]

    def encode(self) -> bytes:
        """One JSON line a sample."""
        lines = (json.dumps(entry.model_dump(), sort_keys=True, separators=(",", ":")) for entry in self.entries)
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def read(cls, path: Path) -> ShardIndex:
        """Raises InputError where the file is missing or is not an index."""
        try:
            lines = path.read_bytes().splitlines()
            return cls(entries=tuple(IndexEntry.model_validate_json(line) for line in lines))
        except (OSError, ValidationError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a shard index"
            raise InputError(f"{path}: {reason}; run `make shards` again to remake what is missing") from None


class QuarantineEntry(_Record):
    """A listed image that is in no shard, and why."""

    source: str
    reason: str


class Manifest(_Record):
    """What a set of shards holds. Listed = stored + quarantined.

    `settings` are all that decide the content; `fingerprint` covers them, the list of images and the versions.
    `superpixel_size` is the height and width of the label maps in pixels, `max_superpixels` the largest
    num_superpixels of any sample, `ignored` the files that are no images by name.
    """

    format_version: int = FORMAT_VERSION
    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: str
    listed: int
    stored: int
    quarantined: int
    ignored: int
    superpixel_size: int
    max_superpixels: int
    classes: tuple[str, ...] = ()
    quarantine_sha256: str
    shards: tuple[ShardStats, ...]

    def encode(self) -> bytes:
        """Indented JSON with sorted keys."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a shard folder.

        Raises:
            InputError: there is none (no shards, or not finished), it is of another format, or it is damaged.
        """
        path = folder / MANIFEST_NAME
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; `make shards IMAGES=… SHARDS={folder}` makes it")
        try:
            loaded = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise InputError(
                f"{folder}: no {MANIFEST_NAME}, so these are no finished shards; run `make shards`"
            ) from None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); run `make shards` again") from None
        version = loaded.get("format_version") if isinstance(loaded, dict) else None
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {version!r}, but this r2o reads {FORMAT_VERSION}; make the shards again"
            )
        try:
            manifest = cls.model_validate(loaded)
        except ValidationError:
            raise InputError(f"{path} is damaged; run `make shards` again") from None
        if manifest.stored != sum(shard.samples for shard in manifest.shards):
            raise InputError(f"{path} is damaged: stored is not the sum over its shards; run `make shards` again")
        return manifest


def encode_quarantine(entries: Iterable[QuarantineEntry]) -> bytes:
    """quarantine.jsonl: one JSON line per image, sorted by source."""
    ordered = sorted(entries, key=lambda entry: (entry.source, entry.reason))
    return "".join(json.dumps(e.model_dump(), sort_keys=True, ensure_ascii=False) + "\n" for e in ordered).encode()


def read_quarantine(folder: Path) -> list[QuarantineEntry]:
    """The quarantined images of a shard folder."""
    lines = (folder / QUARANTINE_NAME).read_bytes().split(b"\n")
    return [QuarantineEntry.model_validate_json(line) for line in lines if line]
