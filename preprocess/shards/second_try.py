"""Images that could not be opened are tried again: at the end of the job, and by the next one.

What went away may come back: a mount, a permission. What an image's own bytes are to blame for stays in quarantine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.manifest import MANIFEST_NAME, QuarantineEntry, read_quarantine
from pipeline.artifacts.sample import source_name
from preprocess.shards.folder.guard import has_its_quarantine
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import CANNOT_BE_READ, ShardResult
from preprocess.sources.reader import Reader


def unread_before(job: ShardJob) -> dict[int, list[str]]:
    """Of each shard, the images in quarantine that could not be opened when it was made (names as in quarantine).

    They, and they alone, may come back: a mount that was away, a permission that was missing.
    """
    found = _quarantine(job, reason=CANNOT_BE_READ)
    return {number: [entry.source for entry in entries] for number, entries in sorted(found.items()) if entries}


def readable_again(job: ShardJob) -> list[int]:
    """Numbers of the shards with such images of which one can be opened now."""
    listing = job.plan.listing
    with Reader(listing.root, listing.kind, listing.column) as reader:
        return [
            number
            for number, names in unread_before(job).items()
            if any(source_name(s.name) in names and reader.is_readable(s) for s in job.sources(number))
        ]


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
