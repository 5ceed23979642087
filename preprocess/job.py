"""The state of a set of shards in the making: what is done, what is left, and whose folder it is.

Until the manifest is there, a hidden folder inside the shard folder holds `job.json`, which says what is being made,
and a result per finished shard. So a job that was killed goes on where it was, and another one does not mix in.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.files import is_temporary, sha256_of, write_atomic
from pipeline.artifacts.fingerprint import differences
from pipeline.artifacts.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    ShardStats,
    encode_quarantine,
)
from preprocess.plan import Plan
from preprocess.shard_task import ShardResult

JOB_FOLDER, RECORD_NAME, LOCK_NAME = ".job", "job.json", "lock"
SHARD_FILE = re.compile(r"[A-Za-z0-9_-]+-\d{6}\.(tar|index)")
ANOTHER = "choose another SHARDS folder, or add --overwrite to make them again"


class _JobRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: str
    listed: int


class ShardJob:
    """One plan in one folder. Nothing is written before `begin`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.job_folder = folder / JOB_FOLDER
        self.manifest: Manifest | None = None
        self.results: dict[str, ShardResult] = {}

    def load(self, *, overwrite: bool = False) -> None:
        """Read what is there already.

        Raises:
            InputError: the folder holds something else, or shards of other settings or images, and not `overwrite`.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: a file; SHARDS must be a folder")
        found = {entry.name for entry in self.folder.iterdir()} if self.folder.is_dir() else set()
        if found and not found & {MANIFEST_NAME, JOB_FOLDER}:
            raise InputError(
                f"{self.folder}: holds {min(found)!r} but no shards; SHARDS must be an empty or new folder"
            )
        if overwrite:
            return
        self.manifest = self._read_manifest() if MANIFEST_NAME in found else None
        record_path = self.job_folder / RECORD_NAME
        if self.manifest is not None:
            self._refuse_another(self.manifest)
        if record_path.exists():
            self._refuse_another(self._read_record(record_path))
            self.results = dict(self._read_results())

    @property
    def pending(self) -> list[int]:
        """Numbers of the shards that are not there yet, or no longer."""
        done = self._known_stats()
        names = ((number, self.plan.name(number)) for number in range(len(self.plan)))
        return [number for number, name in names if name not in done or not self._is_whole(done[name])]

    def begin(self, *, overwrite: bool = False) -> None:
        """Make the folder, say in it what is being made, and remove what killed writers left."""
        if overwrite:
            self._remove_shards()
        self.job_folder.mkdir(parents=True, exist_ok=True)
        record = _JobRecord(
            settings=self.plan.settings.content(),
            versions=self.plan.versions,
            fingerprint=self.plan.fingerprint,
            listed=len(self.plan.listing.images),
        )
        write_atomic(self.job_folder / RECORD_NAME, record.model_dump_json() + "\n")
        self._remove_temporaries()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against a second job on the same machine; the lock ends with the process."""
        self.job_folder.mkdir(parents=True, exist_ok=True)
        with (self.job_folder / LOCK_NAME).open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.folder}: another job is making these shards; wait until it ends") from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                    raise
            yield

    def record(self, result: ShardResult) -> None:
        """Note a finished shard.

        Raises:
            InputError: the manifest knows this shard with other content, so images changed under the same size.
        """
        name = result.stats.name
        if self.manifest is not None and result.stats not in self.manifest.shards:
            raise InputError(f"{self.folder / name}: not what the manifest says, so its images have changed; {ANOTHER}")
        self.results[name] = result
        write_atomic(self.job_folder / f"{name}.json", result.model_dump_json() + "\n")

    def finish(self) -> Manifest:
        """Write quarantine and manifest, in this order, and remove the job's own folder."""
        assert not self.pending
        if len(self.results) == len(self.plan):
            data = encode_quarantine(entry for result in self.results.values() for entry in result.quarantine)
            write_atomic(self.folder / QUARANTINE_NAME, data)
            self.manifest = self._new_manifest(hashlib.sha256(data).hexdigest())
            write_atomic(self.folder / MANIFEST_NAME, self.manifest.encode())
        assert self.manifest is not None
        self._remove_temporaries()
        shutil.rmtree(self.job_folder)
        return self.manifest

    def _new_manifest(self, quarantine_sha256: str) -> Manifest:
        results = [self.results[self.plan.name(number)] for number in range(len(self.plan))]
        return Manifest(
            settings=self.plan.settings.content(),
            versions=self.plan.versions,
            fingerprint=self.plan.fingerprint,
            listed=len(self.plan.listing.images),
            stored=sum(result.stats.samples for result in results),
            quarantined=sum(len(result.quarantine) for result in results),
            ignored=self.plan.listing.ignored,
            superpixel_size=self.plan.settings.superpixels.size,
            max_superpixels=max(result.max_superpixels for result in results),
            classes=self.plan.listing.classes,
            quarantine_sha256=quarantine_sha256,
            shards=tuple(result.stats for result in results),
        )

    def _known_stats(self) -> dict[str, ShardStats]:
        """Statistics of the shards that need no making, if their files are there."""
        ours = {name: result.stats for name, result in self.results.items()}
        if self.manifest is None:
            return ours
        quarantine = self.folder / QUARANTINE_NAME
        if not quarantine.is_file() or sha256_of(quarantine) != self.manifest.quarantine_sha256:
            return ours  # only making them all again tells what was left out
        return {stats.name: stats for stats in self.manifest.shards}

    def _is_whole(self, stats: ShardStats) -> bool:
        tar, index = self.folder / stats.name, self.folder / stats.index_name
        if not tar.is_file() or not index.is_file():
            return False
        return tar.stat().st_size == stats.bytes and sha256_of(index) == stats.index_sha256

    def _read_manifest(self) -> Manifest:
        try:
            return Manifest.read(self.folder)
        except InputError as error:
            raise InputError(f"{error} (add --overwrite to make them again)") from None

    def _read_record(self, path: Path) -> _JobRecord:
        try:
            return _JobRecord.model_validate_json(path.read_bytes())
        except ValidationError:
            raise InputError(f"{path}: damaged; {ANOTHER}") from None

    def _read_results(self) -> Iterator[tuple[str, ShardResult]]:
        for number in range(len(self.plan)):
            name = self.plan.name(number)
            path = self.job_folder / f"{name}.json"
            if path.is_file():
                try:
                    yield name, ShardResult.model_validate_json(path.read_bytes())
                except ValidationError:
                    raise InputError(f"{path}: damaged; remove it and run the same command again") from None

    def _refuse_another(self, theirs: Manifest | _JobRecord) -> None:
        if theirs.fingerprint == self.plan.fingerprint:
            return
        changed = differences(self.plan.settings.content(), theirs.settings)
        changed += differences(self.plan.versions, theirs.versions, "version of ")
        listed = len(self.plan.listing.images)
        if not changed:
            same = "as many, but other names or sizes" if listed == theirs.listed else f"{theirs.listed} → {listed}"
            changed = [f"the list of images: {same}"]
        raise InputError(f"{self.folder}: its shards are of another job ({'; '.join(changed)}); {ANOTHER}")

    def _remove_shards(self) -> None:
        """Manifest first, so that no reader takes the rest for a whole set."""
        for name in (MANIFEST_NAME, QUARANTINE_NAME):
            (self.folder / name).unlink(missing_ok=True)
        for path in sorted(self.folder.iterdir()):
            if SHARD_FILE.fullmatch(path.name):
                path.unlink()
        for path in self.job_folder.glob("*.json"):
            path.unlink()

    def _remove_temporaries(self) -> None:
        for folder in (self.folder, self.job_folder):
            for path in filter(is_temporary, list(folder.iterdir())):
                path.unlink(missing_ok=True)
