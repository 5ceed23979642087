"""The state of a set of shards in the making: what is done, what is left, and whose folder it is.

Until the manifest is there, a hidden folder inside the shard folder holds `job.json`, which says what is being made,
and a result per finished shard. So a job that was killed goes on where it was, and another one does not mix in.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.fingerprint import differences
from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    MapStats,
    ShardStats,
    encode_quarantine,
)
from pipeline.artifacts.names import Sha256
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import is_temporary
from pipeline.foundation.folders import Folder, folder_at
from pipeline.foundation.locks import held
from preprocess.shards.make_one import ShardResult
from preprocess.shards.plan import Plan

JOB_FOLDER, JOB_NAME = ".job", "job.json"
SHARD_FILE = re.compile(r"[A-Za-z0-9_-]+-\d{6,}\.(tar|index)")
ANOTHER = "choose another SHARDS folder, or add --overwrite to make them again"
REQUESTS = 16  # at a time, where files lie behind a URL


class _JobRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: Sha256
    listed: int


def check_owner(folder: Folder, fingerprint: str) -> None:
    """That the job of this fingerprint still works here. A worker asks before it publishes a shard.

    Raises:
        InputError: it ended, or another one has begun.
    """
    try:
        record = _JobRecord.model_validate_json(folder.below(JOB_FOLDER).read(JOB_NAME))
    except (FileNotFoundError, NotADirectoryError):
        record = None
    except ValidationError:
        raise InputError(f"{folder.root}/{JOB_FOLDER}/{JOB_NAME}: damaged; {ANOTHER}") from None
    if record is None or record.fingerprint != fingerprint:
        raise InputError(f"{folder.root}: the job that wanted this shard is gone; nothing was written")


class ShardJob:
    """One plan in one folder, local or behind a URL. Nothing is written before `begin`."""

    def __init__(self, place: str | os.PathLike[str] | Folder, plan: Plan) -> None:
        self.folder, self.plan = folder_at(place), plan
        self.job_folder = self.folder.below(JOB_FOLDER)
        self.manifest: Manifest | None = None
        self.results: dict[str, ShardResult] = {}

    def load(self, *, overwrite: bool = False) -> None:
        """Read what is there already.

        Raises:
            InputError: the folder holds something else, or shards of other settings or images, and not `overwrite`.
        """
        root = self.folder.root
        try:
            found = set(self.folder.names())
        except NotADirectoryError:
            raise InputError(f"{root}: a file; SHARDS must be a folder") from None
        if found and not found & {MANIFEST_NAME, JOB_FOLDER}:
            raise InputError(f"{root}: holds {min(found)!r} but no shards; SHARDS must be an empty or new folder")
        if overwrite:
            return
        self.manifest = self._read_manifest() if MANIFEST_NAME in found else None
        if self.manifest is not None:
            self._refuse_another(self.manifest)
        jobs = set(self.job_folder.names()) if JOB_FOLDER in found else set()
        if JOB_NAME in jobs:
            self._refuse_another(self._read_record())
            self.results = dict(self._read_results(jobs))

    @property
    def is_begun(self) -> bool:
        """Whether a job was here that has not ended."""
        return JOB_FOLDER in self.folder.names()

    def pending(self) -> list[int]:
        """Numbers of the shards that are not there yet, or no longer."""
        done, sizes = self._known_stats(), self.folder.sizes()

        def is_pending(number: int) -> bool:
            stats = done.get(self.plan.name(number))
            return stats is None or not self._is_whole(stats, sizes)

        with ThreadPoolExecutor(REQUESTS) as threads:
            answers = threads.map(is_pending, range(len(self.plan)))
            return [number for number, answer in enumerate(answers) if answer]

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder, say in it what is being made, and remove what killed writers left."""
        if overwrite:
            self._remove_shards()
        self.folder.make()
        self.job_folder.make()
        record = _JobRecord(
            settings=self.plan.settings.content(),
            versions=self.plan.versions,
            fingerprint=self.plan.fingerprint,
            listed=self.plan.total,
        )
        self.job_folder.write(JOB_NAME, record.model_dump_json() + "\n")
        self._remove_temporaries()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second job."""
        self.job_folder.make()
        with held(self.job_folder, shards=self.folder.root):
            yield

    def record(self, result: ShardResult) -> None:
        """Note a finished shard.

        Raises:
            InputError: the manifest knows this shard with other content, so images changed under the same size.
        """
        name = result.stats.name
        if self.manifest is not None and result.stats not in self.manifest.shards:
            where = f"{self.folder.root}/{name}"
            raise InputError(f"{where}: not what the manifest says, so its images have changed; {ANOTHER}")
        self.results[name] = result
        self.job_folder.write(f"{name}.json", result.model_dump_json() + "\n")

    def finish(self) -> Manifest:
        """Write quarantine and manifest, in this order, and remove the job's own folder."""
        if len(self.results) == len(self.plan):
            data = encode_quarantine(entry for result in self.results.values() for entry in result.quarantine)
            self.folder.write(QUARANTINE_NAME, data)
            self.manifest = self._new_manifest(hashlib.sha256(data).hexdigest())
            self.folder.write(MANIFEST_NAME, self.manifest.encode())
        assert self.manifest is not None
        self._remove_temporaries()
        self.folder.remove(JOB_FOLDER)
        return self.mark_limit()

    def mark_limit(self) -> Manifest:
        """The manifest, marked by today's max_bad_fraction; written again where that changes it."""
        assert self.manifest is not None
        over = self.manifest.quarantined > self.plan.settings.max_bad_fraction * self.manifest.listed
        if over != self.manifest.over_limit:
            self._remove_temporaries()  # of one that was killed at this very place
            self.manifest = self.manifest.model_copy(update={"over_limit": over})
            self.folder.write(MANIFEST_NAME, self.manifest.encode())
        return self.manifest

    def _new_manifest(self, quarantine_sha256: str) -> Manifest:
        results = [self.results[self.plan.name(number)] for number in range(len(self.plan))]
        settings = self.plan.settings
        quarantined = sum(len(result.quarantine) for result in results)

        def most(name: str) -> int:
            return max(result.max_superpixels[name] for result in results)

        return Manifest(
            settings=settings.content(),
            versions=self.plan.versions,
            fingerprint=self.plan.fingerprint,
            listed=self.plan.total,
            stored=sum(result.stats.samples for result in results),
            quarantined=quarantined,
            ignored=self.plan.listing.ignored,
            superpixel_size=settings.superpixels.size,
            max_superpixels=most(MAIN_MAP),
            maps={name: MapStats(size=made.size, max_superpixels=most(name)) for name, made in settings.maps.items()},
            over_limit=quarantined > settings.max_bad_fraction * self.plan.total,
            classes=self.plan.listing.classes,
            quarantine_sha256=quarantine_sha256,
            shards=tuple(result.stats for result in results),
        )

    def _known_stats(self) -> dict[str, ShardStats]:
        """Statistics of the shards that need no making, if their files are there."""
        ours = {name: result.stats for name, result in self.results.items()}
        if self.manifest is None:
            return ours
        try:
            quarantine = hashlib.sha256(self.folder.read(QUARANTINE_NAME)).hexdigest()
        except FileNotFoundError:
            quarantine = ""
        if quarantine != self.manifest.quarantine_sha256:
            return ours  # only making them all again tells what was left out
        return {stats.name: stats for stats in self.manifest.shards}

    def _is_whole(self, stats: ShardStats, sizes: dict[str, int]) -> bool:
        if sizes.get(stats.name) != stats.bytes or stats.index_name not in sizes:
            return False
        return hashlib.sha256(self.folder.read(stats.index_name)).hexdigest() == stats.index_sha256

    def _read_manifest(self) -> Manifest:
        try:
            return Manifest.read(self.folder)
        except InputError as error:
            raise InputError(f"{error} (add --overwrite to make them again)") from None

    def _read_record(self) -> _JobRecord:
        try:
            return _JobRecord.model_validate_json(self.job_folder.read(JOB_NAME))
        except ValidationError:
            raise InputError(f"{self.job_folder.root}/{JOB_NAME}: damaged; {ANOTHER}") from None

    def _read_results(self, found: set[str]) -> Iterator[tuple[str, ShardResult]]:
        names = [name for number in range(len(self.plan)) if f"{(name := self.plan.name(number))}.json" in found]
        with ThreadPoolExecutor(REQUESTS) as threads:
            for name, data in zip(
                names, threads.map(lambda name: self.job_folder.read(f"{name}.json"), names), strict=True
            ):
                try:
                    yield name, ShardResult.model_validate_json(data)
                except ValidationError:
                    path = f"{self.job_folder.root}/{name}.json"
                    raise InputError(f"{path}: damaged; remove it and run the same command again") from None

    def _refuse_another(self, theirs: Manifest | _JobRecord) -> None:
        if theirs.fingerprint == self.plan.fingerprint:
            return
        changed = differences(self.plan.settings.content(), theirs.settings)
        changed += differences(self.plan.versions, theirs.versions, "version of ")
        if not changed:
            same, listed = "as many, but other names, sizes or places", self.plan.total
            changed = [f"the list of images: {same if listed == theirs.listed else f'{theirs.listed} → {listed}'}"]
        raise InputError(f"{self.folder.root}: its shards are of another job ({'; '.join(changed)}); {ANOTHER}")

    def _remove_shards(self) -> None:
        """Manifest first, so that no reader takes the rest for a whole set."""
        found = self.folder.names()
        for name in (MANIFEST_NAME, QUARANTINE_NAME, *filter(SHARD_FILE.fullmatch, found)):
            if name in found:
                self.folder.remove(name)
        for name in self.job_folder.names():
            if name.endswith(".json"):
                self.job_folder.remove(name)

    def _remove_temporaries(self) -> None:
        for folder in (self.folder, self.job_folder):
            for name in folder.names():
                if is_temporary(Path(name)):
                    folder.remove(name)
