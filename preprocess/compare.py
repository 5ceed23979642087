"""Are the samples of finished shards still those of their images? Content decides, not names and sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

import numpy as np

from pipeline.artifacts.manifest import IndexEntry, Manifest, ShardIndex, ShardStats
from pipeline.artifacts.sample import IMAGE_MEMBER, META_MEMBER, SampleMeta
from pipeline.foundation.folders import Folder
from pipeline.foundation.progress import Progress
from preprocess.check_sample import by_fault, is_source
from preprocess.config import ShardSettings
from preprocess.shards.images import Unreadable
from preprocess.shards.make_one import read_source
from preprocess.sources.listing import Listing, Source
from preprocess.sources.reader import Reader

GONE, OTHER = "its image is gone", "its image is another one now"


@dataclass
class Comparison:
    """How many samples are as their images, what is wrong by shard, and how many cannot be compared.

    What storing changed cannot be compared where the shards are of format 1: they do not say what was read.
    """

    same: int = 0
    differ: int = 0
    unknown: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)


def compare(
    folder: Folder,
    manifest: Manifest,
    listing: Listing,
    settings: ShardSettings,
    *,
    leave_out: Collection[str],
    workers: int | None = None,
) -> Comparison:
    """Compare every sample with what its image is now; in memory are 16 bytes an image, and an image a thread.

    Args:
        settings: those of the set.
        leave_out: shards that cannot be read.
        workers: threads; None: one a core.
    Raises:
        InputError: an image cannot be read for a reason that lies outside it, or changes just now.
    """
    compared, sources = Comparison(), _ByName(listing)
    shards = [stats for stats in manifest.shards if stats.name not in leave_out]
    progress = Progress("compare", sum(stats.samples for stats in shards), "samples")
    with ThreadPoolExecutor(workers or os.cpu_count()) as threads:
        jobs = {
            threads.submit(compare_shard, folder, stats, sources.find, listing, settings): stats for stats in shards
        }
        try:
            for job in as_completed(jobs):
                one, stats = job.result(), jobs[job]
                compared.same, compared.differ = compared.same + one.same, compared.differ + one.differ
                compared.unknown += one.unknown
                compared.found |= one.found
                progress.advance(stats.samples, extra=f"{compared.differ} differ")
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    compared.found = dict(sorted(compared.found.items()))
    return compared


class _ByName:
    """The images of a list by name; the list itself stays on disk."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        hashes = np.fromiter((hash(source.name) for source in listing), np.int64, len(listing))
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def find(self, name: bytes) -> Source | None:
        """The image of this name."""
        first, last = (int(np.searchsorted(self._hashes, hash(name), side)) for side in ("left", "right"))
        found = (self.listing[int(number)] for number in self._order[first:last])
        return next((source for source in found if source.name == name), None)


def compare_shard(
    folder: Folder,
    stats: ShardStats,
    find: Callable[[bytes], Source | None],
    listing: Listing,
    settings: ShardSettings,
) -> Comparison:
    """Compare the samples of one shard with what their images are now; `find` gives a listed image by name."""
    compared, faults = Comparison(), dict[str, list[str]]()
    with Reader(listing.root, listing.kind, listing.column) as reader:
        for entry, meta, jpeg in _samples(folder, stats):
            is_known = meta.source_sha256 is not None or not meta.changed
            source = find(unquote_to_bytes(meta.source))
            data = Unreadable(GONE) if source is None else read_source(reader, source, settings) if is_known else b""
            if isinstance(data, Unreadable):
                fault = GONE if source is None else f"its image: {data}"
            elif not is_known:
                compared.unknown += 1
                continue
            elif data == jpeg if meta.source_sha256 is None else is_source(data, meta):
                compared.same += 1
                continue
            else:
                fault = OTHER
            compared.differ += 1
            faults.setdefault(fault, []).append(entry.key)
    if faults:
        compared.found[stats.name] = list(by_fault(faults))
    return compared


def _samples(folder: Folder, stats: ShardStats) -> Iterator[tuple[IndexEntry, SampleMeta, bytes]]:
    """What json says of each sample; and its jpg, where that alone says what the image was."""
    with folder.open(stats.name) as file:

        def member(entry: IndexEntry, name: str) -> bytes:
            offset, size = entry.members[name]
            file.seek(offset)
            return file.read(size)

        for entry in ShardIndex.read(folder, stats).entries:
            meta = SampleMeta.decode(member(entry, META_MEMBER))
            yield entry, meta, member(entry, IMAGE_MEMBER) if meta.source_sha256 is None else b""
