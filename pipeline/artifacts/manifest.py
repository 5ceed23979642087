"""A finished set of shards: what is in it, and how a reader finds a sample without scanning.

`manifest.json` is written last, so its existence means that the set is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.names import Count, Key, MapName, MapSide, NumIds, Sha256, ShardName, first_problem
from pipeline.artifacts.seal import CHECKSUM, sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, folder_at

MANIFEST_FORMAT_VERSION = 2  # 2: a checksum in the manifest, and of every image's source in its json
READABLE_VERSIONS = (1, 2)
MANIFEST_NAME = "manifest.json"
QUARANTINE_NAME = "quarantine.jsonl"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ShardStats(_Record):
    """One shard of a set: `bytes` and hex `sha256` of its tar, hex `index_sha256` of its index."""

    name: ShardName
    samples: Count
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256

    @property
    def index_name(self) -> str:
        """File name of the index that belongs to the tar."""
        return str(PurePosixPath(self.name).with_suffix(".index"))


class IndexEntry(_Record):
    """Where one sample lies in its tar: per member its (offset, size) in bytes."""

    key: Key
    members: dict[str, tuple[Count, Count]]


class ShardIndex(_Record):
    """The samples of one shard, in the order of the tar."""

    entries: tuple[IndexEntry, ...]

    def encode(self) -> bytes:
        """One JSON line a sample."""
        lines = (json.dumps(entry.model_dump(), sort_keys=True, separators=(",", ":")) for entry in self.entries)
        return "".join(f"{line}\n" for line in lines).encode()

    @classmethod
    def decode(cls, data: bytes) -> ShardIndex:
        """The reverse of `encode`. Raises ValueError (pydantic's) where the bytes are no index."""
        return cls(entries=tuple(IndexEntry.model_validate_json(line) for line in data.splitlines()))

    def beyond(self, size: int) -> list[str]:
        """Keys of the samples that do not lie within a tar of that many bytes."""
        return [e.key for e in self.entries if any(offset + length > size for offset, length in e.members.values())]

    @classmethod
    def read(cls, folder: str | os.PathLike[str] | Folder, stats: ShardStats) -> ShardIndex:
        """Raises InputError where the file is missing or is not the index of that shard."""
        folder, reason = folder_at(folder), "not the index of its shard"
        try:
            index = cls.decode(folder.read(stats.index_name))
            if len(index.entries) == stats.samples and not index.beyond(stats.bytes):
                return index
        except OSError as error:
            reason = error.strerror or str(error)
        except ValidationError:
            pass
        path = f"{folder.root}/{stats.index_name}"
        raise InputError(f"{path}: {reason}; run `make shards` again to remake what is missing")


class QuarantineEntry(_Record):
    """A listed image that is in no shard, and why."""

    source: str
    reason: str


class MapStats(_Record):
    """A map of every sample: its height and width in pixels, and the largest number of ids in one."""

    size: MapSide
    max_superpixels: NumIds


class Manifest(_Record):
    """What a set of shards holds. Listed = stored + quarantined.

    `settings` are all that decide the content; `fingerprint` covers them, the list of images and the versions.
    `superpixel_size` is the height and width of the label maps in pixels, `max_superpixels` the largest
    num_superpixels of any sample, `maps` the same of further maps by name, `ignored` the files that are no images by
    name. `over_limit`: more images are in quarantine than whoever made the set allowed.
    """

    format_version: int = MANIFEST_FORMAT_VERSION
    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: Sha256
    listed: Count
    stored: Count
    quarantined: Count
    ignored: Count
    superpixel_size: MapSide
    max_superpixels: NumIds
    maps: dict[MapName, MapStats] = {}
    over_limit: bool = False
    classes: tuple[str, ...] = ()
    quarantine_sha256: Sha256
    shards: tuple[ShardStats, ...]

    @property
    def images_per_shard(self) -> int:
        """Places in the order of the whole set that a shard has. Raises InputError where the settings do not say it."""
        found = self.settings.get("images_per_shard")
        if type(found) is not int or found < 1:
            shown = f"{found!r:.60}"
            raise InputError(
                f"{MANIFEST_NAME} is damaged: settings.images_per_shard is {shown}; run `make shards` again"
            )
        return found

    def map_stats(self, name: str) -> MapStats:
        """Of the main map or a further one. Raises KeyError where there is no such map."""
        if name == MAIN_MAP:
            return MapStats(size=self.superpixel_size, max_superpixels=self.max_superpixels)
        return self.maps[name]

    def encode(self) -> bytes:
        """Indented JSON with sorted keys; since format 2 with a checksum."""
        members = self.model_dump(mode="json")
        members = sealed(members) if self.format_version > 1 else members
        return (json.dumps(members, sort_keys=True, indent=1) + "\n").encode()

    @property
    def content_sha256(self) -> str:
        """Hex SHA-256 of what every shard and index holds, by name and in order."""
        return fingerprint(shards=[[shard.name, shard.sha256, shard.index_sha256] for shard in self.shards])

    @classmethod
    def read(cls, place: str | os.PathLike[str] | Folder) -> Manifest:
        """The manifest of a folder of shards, a local one or one behind a URL.

        Raises:
            InputError: there is none (no shards, or not finished), it is of another format, or it is damaged.
        """
        folder = folder_at(place)
        path = f"{folder.root}/{MANIFEST_NAME}"
        try:
            loaded = json.loads(folder.read(MANIFEST_NAME))
        except NotADirectoryError:
            raise InputError(f"{folder.root}: a file, not a folder of shards") from None
        except FileNotFoundError:
            if not folder.exists():
                made = f"`make shards IMAGES=… SHARDS={folder.root}` makes it"
                raise InputError(f"{folder.root}: no such folder; {made}") from None
            raise InputError(
                f"{folder.root}: no {MANIFEST_NAME}, so these are no finished shards; run `make shards`"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read ({error}); run `make shards` again") from None
        version = loaded.get("format_version") if isinstance(loaded, dict) else None
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise InputError(
                f"{path}: format version {version!r}, but this r2o reads {' and '.join(map(str, READABLE_VERSIONS))}; "
                "make the shards again, or take the r2o that made them"
            )
        try:
            manifest = cls.model_validate({name: value for name, value in loaded.items() if name != CHECKSUM})
        except ValidationError as error:
            raise InputError(f"{path} is damaged ({first_problem(error)}); run `make shards` again") from None
        if manifest.stored != sum(shard.samples for shard in manifest.shards):
            raise InputError(f"{path} is damaged: stored is not the sum over its shards; run `make shards` again")
        if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
            raise InputError(f"{path} is damaged: it names a shard twice; run `make shards` again")
        try:
            unsealed(loaded, required=version > 1)  # last, as the others say more
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); fetch it again, or run `make shards` again") from None
        return manifest

    def require_within_limit(self, place: object, *, unless: str) -> None:
        """Refuse a set of which too much is missing.

        Args:
            place: where the set lies, for the message.
            unless: the setting that accepts it.
        Raises:
            InputError: `over_limit` is set.
        """
        if self.over_limit:
            raise InputError(
                f"{place}: {self.quarantined} of {self.listed} images are in quarantine, more than was allowed when "
                f"the shards were made (quarantine.jsonl says why); set {unless} to use them as they are"
            )


def encode_quarantine(entries: Iterable[QuarantineEntry]) -> bytes:
    """quarantine.jsonl: one JSON line per image, sorted by source."""
    ordered = sorted(entries, key=lambda entry: (entry.source, entry.reason))
    return "".join(json.dumps(e.model_dump(), sort_keys=True, ensure_ascii=False) + "\n" for e in ordered).encode()


def read_quarantine(place: str | os.PathLike[str] | Folder) -> list[QuarantineEntry]:
    """The quarantined images of a shard folder. Raises InputError where a line is none."""
    folder = folder_at(place)
    lines = folder.read(QUARANTINE_NAME).split(b"\n")
    try:
        return [QuarantineEntry.model_validate_json(line) for line in lines if line]
    except ValidationError:
        raise InputError(f"{folder.root}/{QUARANTINE_NAME} is damaged; remove it and run `make shards` again") from None
