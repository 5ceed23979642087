"""The state of a set of shards in the making: what is done, what is left, and whose folder it is.

Until the manifest is there, a hidden folder in it holds the job's record and a note per shard that is done.
So a job that was killed goes on where it was, and another one does not mix in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import (
    MANIFEST_FORMAT_VERSION,
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    MapStats,
    ShardStats,
    encode_quarantine,
)
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, folder_at
from pipeline.foundation.locks import held
from preprocess.shards.folder.guard import (
    has_its_quarantine,
    is_left_behind,
    other_than,
    replaceable,
    require_only_notes,
    require_only_ours,
    shards_named,
)
from preprocess.shards.folder.records import ANOTHER, JOB_FOLDER, JOB_NAME, JobRecord, Note, read_job_record
from preprocess.shards.make_one import ShardResult
from preprocess.shards.plan import Plan, ShardTask
from preprocess.sources.listing import Source, stamps_digest

REQUESTS = 16  # at a time, where files lie behind a URL


class ShardJob:
    """One plan in one folder, local or behind a URL. Nothing is written before `begin`.

    A set that a former release began or finished is completed in its own format.

    Attributes:
        manifest: of the finished set, where it is one.
        results: of the shards that are done, by name, as long as it is not finished.
        replaces: prefixes of former shards that `begin` removes.
    """

    def __init__(self, place: str | os.PathLike[str] | Folder, plan: Plan) -> None:
        self.folder, self.plan = folder_at(place), plan
        self.job_folder = self.folder.below(JOB_FOLDER)
        self.manifest: Manifest | None = None
        self.results: dict[str, ShardResult] = {}
        self.replaces: tuple[str, ...] = ()
        self._stamps: dict[int, str] = {}

    def load(self, *, overwrite: bool = False) -> None:
        """Read what is there already. This very job goes on also with `overwrite`, which it may have begun with.

        Raises:
            InputError: the folder holds something else, or shards of other settings or images, and not `overwrite`.
        """
        root = self.folder.root
        self.manifest, self.results, self.replaces = None, {}, ()
        try:
            found = set(self.folder.names())
        except NotADirectoryError:
            raise InputError(f"{root}: a file; SHARDS must be a folder") from None
        if found and not found & {MANIFEST_NAME, JOB_FOLDER}:
            raise InputError(f"{root}: holds {min(found)!r} but no shards; SHARDS must be an empty or new folder")
        jobs = set(self.job_folder.names()) if JOB_FOLDER in found else set()
        require_only_notes(self.job_folder, jobs)
        if overwrite and found and self._begins_anew(found, jobs):
            return
        record = read_job_record(self.folder) if JOB_NAME in jobs else None
        if record is not None and record.replaces:
            self._adopt(record)
            self.replaces = record.replaces
            return
        if MANIFEST_NAME in found:
            self.manifest = self._read_manifest()
        if record is not None:
            self._adopt(record)
            self.results = dict(self._read_results(jobs))
        elif self.manifest is None:
            require_only_ours(self.folder, found, own=self.plan.settings.prefix)

    @property
    def is_begun(self) -> bool:
        """Whether a job was here that has not ended."""
        return JOB_FOLDER in self.folder.names()

    def task(self, number: int) -> ShardTask:
        """The task that makes shard `number`; of a finished set the very shard that the manifest knows."""
        expected = None if self.manifest is None else self.manifest.shards[number]
        return replace(self.plan.task(number), expected=expected)

    def pending(self) -> list[int]:
        """Numbers of the shards that are not there yet, or no longer."""
        done, sizes = self._known_stats(), self.folder.sizes()

        def is_pending(number: int) -> bool:
            stats = done.get(self.plan.name(number))
            return stats is None or not self._is_whole(stats, sizes)

        with ThreadPoolExecutor(REQUESTS) as threads:
            answers = threads.map(is_pending, range(len(self.plan)))
            return [number for number, answer in enumerate(answers) if answer]

    def begin(self) -> None:
        """Make the folder, say in it what is being made, remove what that replaces and what killed writers left."""
        self.folder.make()
        self.job_folder.make()
        if self.replaces:
            self._write_record(self.replaces)  # so that a job killed from here on goes on with the removal
            self._remove_shards()
        self._write_record(())
        self.replaces = ()
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
        self.note(self.plan.number(name), result)

    def note(self, number: int, result: ShardResult) -> None:
        """Have it on disk that a shard is done."""
        name = self.plan.name(number)
        self.results[name] = result
        self.job_folder.write(f"{name}.json", Note(result, self._stamps_of(number)).encode())

    def sources(self, number: int) -> list[Source]:
        """The images of a shard."""
        return self.plan.sources(self.plan.positions(number))

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
            format_version=self.plan.format_version,
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
        if not has_its_quarantine(self.folder, self.manifest):
            return ours  # only making them all again tells what was left out
        return {stats.name: stats for stats in self.manifest.shards}

    def _is_whole(self, stats: ShardStats, sizes: dict[str, int]) -> bool:
        if sizes.get(stats.name) != stats.bytes or stats.index_name not in sizes:
            return False
        return hashlib.sha256(self.folder.read(stats.index_name)).hexdigest() == stats.index_sha256

    def _read_manifest(self) -> Manifest:
        """The manifest of this very job; its format is taken over."""
        try:
            manifest = Manifest.read(self.folder)
        except InputError as error:
            raise InputError(f"{error} (add --overwrite to make them again)") from None
        self._adopt(manifest)
        if [stats.name for stats in manifest.shards] != [self.plan.name(number) for number in range(len(self.plan))]:
            raise InputError(f"{self.folder.root}/{MANIFEST_NAME} is damaged: it names other shards; {ANOTHER}")
        return manifest

    def _read_results(self, found: set[str]) -> Iterator[tuple[str, ShardResult]]:
        """The shards that are done, but for those whose images were touched since they were listed for them."""
        names = [name for number in range(len(self.plan)) if f"{(name := self.plan.name(number))}.json" in found]
        with ThreadPoolExecutor(REQUESTS) as threads:
            for name, data in zip(
                names, threads.map(lambda name: self.job_folder.read(f"{name}.json"), names), strict=True
            ):
                try:
                    note = Note.decode(data, self.plan)
                except ValueError:
                    path = f"{self.job_folder.root}/{name}.json"
                    raise InputError(f"{path}: damaged; remove it and run the same command again") from None
                if note.result.stats.name == name and note.stamps in (None, self._stamps_of(self.plan.number(name))):
                    yield name, note.result

    def _stamps_of(self, number: int) -> str:
        if number not in self._stamps:
            self._stamps[number] = stamps_digest(self.sources(number))
        return self._stamps[number]

    def _begins_anew(self, found: set[str], jobs: set[str]) -> bool:
        """With --overwrite: whether what is there gives way. It does not where this very job was at work."""
        record = None
        with suppress(InputError):
            record = read_job_record(self.folder) if JOB_NAME in jobs else None
            if record is not None:
                self._adopt(record)
                if MANIFEST_NAME in found and not record.replaces:
                    self._read_manifest()
                return False
        self.plan = replace(self.plan, format_version=MANIFEST_FORMAT_VERSION)
        self.replaces = replaceable(self.folder, found, record, own=self.plan.settings.prefix)
        return True

    def _adopt(self, theirs: Manifest | JobRecord) -> None:
        """Take over the format of what is there. Raises InputError where it is another job's."""
        plan = replace(self.plan, format_version=theirs.format_version)
        if theirs.fingerprint == plan.fingerprint:
            self.plan = plan
            return
        changed = other_than(self.plan, theirs)
        raise InputError(f"{self.folder.root}: its shards are of another job ({changed}); {ANOTHER}")

    def _write_record(self, replaces: tuple[str, ...]) -> None:
        record = JobRecord(
            settings=self.plan.settings.content(),
            versions=self.plan.versions,
            fingerprint=self.plan.fingerprint,
            listed=self.plan.total,
            format_version=self.plan.format_version,
            replaces=replaces,
        )
        self.job_folder.write(JOB_NAME, record.encode())

    def _remove_shards(self) -> None:
        """Manifest first, so that no reader takes the rest for a whole set."""
        found = self.folder.names()
        for name in (MANIFEST_NAME, QUARANTINE_NAME, *shards_named(self.replaces, found)):
            if name in found:
                self.folder.remove(name)
        for name in self.job_folder.names():
            if name.endswith(".json") and name != JOB_NAME:
                self.job_folder.remove(name)

    def _remove_temporaries(self) -> None:
        for folder in (self.folder, self.job_folder):
            for name in folder.names():
                if is_left_behind(name):
                    folder.remove(name)
