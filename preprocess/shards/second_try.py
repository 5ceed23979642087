"""Images that could not be opened are tried again: at the end of the job, and by the next one.

What went away may come back: a mount, a permission. What an image's own bytes are to blame for stays in quarantine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import MANIFEST_NAME, Manifest, QuarantineEntry, read_quarantine
from pipeline.artifacts.sample import source_name
from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import say
from preprocess.compare import compare_shard
from preprocess.shards.folder.guard import has_its_quarantine
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import CANNOT_BE_READ, ShardResult
from preprocess.sources.listing import Source
from preprocess.sources.reader import Reader


def unread_before(job: ShardJob) -> dict[int, list[str]]:
    """Of each shard, the images in quarantine that could not be opened when it was made (names as in quarantine).

    They, and they alone, may come back: a mount that was away, a permission that was missing.
    """
    found = _quarantine(job, reason=CANNOT_BE_READ)
    return {number: [entry.source for entry in entries] for number, entries in sorted(found.items()) if entries}


def readable_again(job: ShardJob) -> list[int]:
    """Numbers of the shards with such images of which one can be opened now, and no other image has gone since."""
    listing = job.plan.listing
    with Reader(listing.root, listing.kind, listing.column) as reader:

        def is_better(sources: Iterable[Source], unread: Collection[str]) -> bool:
            missing = [source for source in sources if source_name(source.name) in unread]
            others = (source for source in sources if source_name(source.name) not in unread)
            return any(map(reader.is_readable, missing)) and all(map(reader.is_readable, others))

        return [number for number, unread in unread_before(job).items() if is_better(job.sources(number), unread)]


def to_make_again(job: ShardJob, damaged: Collection[int]) -> list[int]:
    """Of `readable_again` those whose samples are still of the images that are there; the others are named.

    Of a finished set that is compared byte by byte, as it keeps no stamps; not of shards that are `damaged`.
    """
    found, manifest = readable_again(job), job.manifest
    return found if manifest is None else [n for n in found if n in damaged or _is_as_made(job, manifest, n)]


def _is_as_made(job: ShardJob, manifest: Manifest, number: int) -> bool:
    stats, sources = manifest.shards[number], {source.name: source for source in job.sources(number)}
    try:
        compared = compare_shard(job.folder, stats, sources.get, job.plan.listing, job.plan.settings)
    except InputError:
        raise
    except (KeyError, ValueError):
        return True  # nothing of it can be read
    if compared.differ:
        say(
            f"r2o: WARNING: {job.folder.root}/{stats.name}: lacks images that can be opened now, and was left so: "
            f"{compared.differ} of its others are not those of then; --overwrite makes all again"
        )
    return not compared.differ


def take_back(job: ShardJob, numbers: Collection[int]) -> None:
    """Count these shards as not done. A finished set becomes an unfinished one: they will be others."""
    if job.manifest is not None:
        _reopen(job, without=numbers)
    for number in numbers:
        job.results.pop(job.plan.name(number), None)
        job.job_folder.remove(f"{job.plan.name(number)}.json")


def _reopen(job: ShardJob, *, without: Collection[int]) -> None:
    """Note every other shard of a finished set as done, then remove its manifest."""
    assert job.manifest is not None
    names = (MAIN_MAP, *job.manifest.maps)
    most = {name: job.manifest.map_stats(name).max_superpixels for name in names}  # of a shard no more is known
    quarantine = _quarantine(job, reason="")
    for number, stats in enumerate(job.manifest.shards):
        if number not in without:
            left_out = tuple(quarantine.get(number, ()))
            job.note(number, ShardResult(stats=stats, quarantine=left_out, max_superpixels=most, seconds=0.0))
    job.folder.remove(MANIFEST_NAME)
    job.manifest = None


def _quarantine(job: ShardJob, *, reason: str) -> dict[int, list[QuarantineEntry]]:
    """What is in quarantine for a reason that begins so, by shard."""
    if job.manifest is None:
        return {
            job.plan.number(name): [entry for entry in result.quarantine if entry.reason.startswith(reason)]
            for name, result in job.results.items()
        }
    if not has_its_quarantine(job.folder, job.manifest):
        return {}
    by_source = {entry.source: entry for entry in read_quarantine(job.folder) if entry.reason.startswith(reason)}
    found = defaultdict(list)
    for number in range(len(job.plan)) if by_source else ():
        for source in job.sources(number):
            if entry := by_source.get(source_name(source.name)):
                found[number].append(entry)
    return found
