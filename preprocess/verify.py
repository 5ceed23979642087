"""Are finished shards whole? Checksums, counts, keys, label maps and images; names what is damaged, and remakes it.

python -m preprocess.verify --shards SHARDS [--workers N] [--deep] [--images IMAGES [--repair]]

With --images, and without --repair: are the samples still those of these images?
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts.manifest import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    Manifest,
    ShardIndex,
    ShardStats,
    read_quarantine,
)
from pipeline.artifacts.names import first_problem
from pipeline.foundation.errors import InputError, exit_code_of, os_errors_named
from pipeline.foundation.exit_codes import EXIT_DAMAGED
from pipeline.foundation.folders import Folder, folder_at
from pipeline.foundation.progress import Progress, one_line
from pipeline.foundation.settings import load_settings
from preprocess.check_sample import MapForm, by_fault, fault_of, forms_of
from preprocess.compare import Comparison, compare
from preprocess.config import ShardSettings
from preprocess.shards.plan import Plan
from preprocess.shards.ray_driver import make_missing
from preprocess.sources.list_images import list_images

NOT_OURS = "belongs to nothing"
BLOCK = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0 for a whole set, 4 for a damaged one, 2 for a mistake in the input."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.verify", description="Check finished shards.")
    parser.add_argument("--shards", required=True, help="finished folder of shards: a path or a URL")
    parser.add_argument("--workers", type=int, help="processes (all cores)")
    parser.add_argument("--deep", action="store_true", help="decode every image, not its header alone")
    parser.add_argument("--repair", action="store_true", help="make the damaged shards again, from --images")
    parser.add_argument("--images", help="what the shards were made from, to compare: a path or a URL")
    parser.add_argument("--config", type=Path, help="for --images: says the files of shards.source")
    parser.add_argument("--set", action="append", default=[], metavar="shards.KEY=VALUE", help="wins over the file")
    return exit_code_of(lambda: _named(parser.parse_args(argv)))


def _named(args: argparse.Namespace) -> int:
    with os_errors_named(args.shards):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    if args.repair and not args.images:
        raise InputError("--repair makes shards again and needs --images, what they were made from")
    folder = folder_at(args.shards)
    manifest = Manifest.read(folder)
    with os_errors_named(args.shards):
        about_set, about_shards = check(folder, manifest, workers=args.workers, deep=args.deep)
    for line in [*about_set, *_by_shard(about_shards)]:
        print(one_line(line))
    size = f"{len(manifest.shards)} shards, {manifest.stored} samples"
    is_whole = not about_set and not about_shards
    if is_whole:
        print(f"{args.shards}: {size}: whole")
    elif args.repair:
        return _repair(args, folder, manifest, list(about_shards))
    compared = _compared(args, folder, manifest, about_shards) if args.images and not args.repair else Comparison()
    if not is_whole:
        print(
            f"r2o: error: {args.shards}: {len(about_shards)} of {size} damaged, {len(about_set)} other faults; verify "
            "again with --repair --images IMAGES to make those shards again",
            file=sys.stderr,
        )
    if compared.differ:
        print(
            f"r2o: error: {args.shards}: {compared.differ} of {manifest.stored} samples are not what their images in "
            f"{args.images} are; give the images of that time, or make the shards again with --overwrite",
            file=sys.stderr,
        )
    return 0 if is_whole and not compared.differ else EXIT_DAMAGED


def _by_shard(found: dict[str, list[str]]) -> list[str]:
    return [f"{name}: {what}" for name, faults in found.items() for what in faults]


def _compared(
    args: argparse.Namespace, folder: Folder, manifest: Manifest, damaged: dict[str, list[str]]
) -> Comparison:
    """How the samples of the shards that are whole differ from --images; says it, as it says what was not compared."""
    settings = _settings_of(manifest, args)
    with list_images(args.images, settings.source) as listing:
        compared = compare(folder, manifest, listing, settings, leave_out=damaged, workers=args.workers)
    for line in _by_shard(compared.found):
        print(one_line(line))
    told = f"{args.shards}: {compared.same} samples are what their images in {args.images} are"
    if compared.unknown:
        told += f"; {compared.unknown} of format 1 were changed when they were stored and cannot be compared"
    if damaged:
        told += f"; {len(damaged)} damaged shards were left out"
    print(told)
    return compared


def check(
    folder: Folder, manifest: Manifest, *, workers: int | None = None, deep: bool = False
) -> tuple[list[str], dict[str, list[str]]]:
    """What is wrong with a set: with it as a whole, and by shard. In memory is a shard's index at a time and process.

    Args:
        workers: processes; None: one a core.
        deep: decode every image, not its header alone.
    """
    found: dict[str, list[str]] = {}
    progress = Progress("verify", manifest.stored, "samples")
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as processes:
        jobs = {
            processes.submit(check_shard, folder.root, manifest, number, deep): stats
            for number, stats in enumerate(manifest.shards)
        }
        for job in as_completed(jobs):
            stats = jobs[job]
            if damage := job.result():
                found[stats.name] = damage
            progress.advance(stats.samples, extra=f"{len(found)} damaged")
    return _about_set(folder, manifest), dict(sorted(found.items()))


def _about_set(folder: Folder, manifest: Manifest) -> list[str]:
    found = []
    try:
        data = folder.read(QUARANTINE_NAME)
    except FileNotFoundError:
        found.append(f"{QUARANTINE_NAME}: missing")
    else:
        if hashlib.sha256(data).hexdigest() != manifest.quarantine_sha256:
            found.append(f"{QUARANTINE_NAME}: sha256 differs from the manifest's")
        elif len(read_quarantine(folder)) != manifest.quarantined:
            found.append(f"{QUARANTINE_NAME}: not the {manifest.quarantined} images that the manifest counts")
    if manifest.listed != manifest.stored + manifest.quarantined:
        found.append(f"{MANIFEST_NAME}: listed is not stored + quarantined")
    ours = {MANIFEST_NAME, QUARANTINE_NAME, *(n for stats in manifest.shards for n in (stats.name, stats.index_name))}
    found += [f"{name}: {NOT_OURS}" for name in folder.names() if name not in ours]
    return found


def check_shard(root: str, manifest: Manifest, number: int, deep: bool) -> list[str]:
    """What is wrong with one shard; nothing for a whole one."""
    folder, stats = folder_at(root), manifest.shards[number]
    sizes = [_size(folder, name) for name in (stats.name, stats.index_name)]
    if None in sizes:
        return [
            f"{name} is missing"
            for name, size in zip((stats.name, stats.index_name), sizes, strict=True)
            if size is None
        ]
    found: list[str] = []
    if sizes[0] != stats.bytes:
        found.append(f"{sizes[0]} bytes, not {stats.bytes}")
    elif _sha256(folder, stats.name) != stats.sha256:
        found.append("sha256 differs from the manifest's")
    data = folder.read(stats.index_name)
    if hashlib.sha256(data).hexdigest() != stats.index_sha256:
        return [*found, f"{stats.index_name}: sha256 differs from the manifest's"]
    try:
        index = ShardIndex.decode(data)
    except ValueError:
        return [*found, f"{stats.index_name}: no index of a shard"]
    if len(index.entries) != stats.samples:
        found.append(f"{len(index.entries)} samples in the index, not {stats.samples}")
    found += list(_about_keys(manifest, number, [entry.key for entry in index.entries]))
    hashed = manifest.format_version > 1
    return found + list(
        _about_members(folder, stats, index, forms_of(manifest), end=sizes[0] or 0, deep=deep, is_hashed=hashed)
    )


def _about_keys(manifest: Manifest, number: int, keys: Sequence[str]) -> Iterator[str]:
    """Keys are places in the order of the whole set, so those of a shard lie between those of its neighbours."""
    each = manifest.images_per_shard
    expected = range(number * each, min((number + 1) * each, manifest.listed))
    if any(not key.isdecimal() or int(key) not in expected for key in keys) or sorted(set(keys)) != list(keys):
        yield f"keys are not rising numbers of {expected.start:09d} … {expected.stop - 1:09d}"


def _about_members(
    folder: Folder,
    stats: ShardStats,
    index: ShardIndex,
    forms: Sequence[MapForm],
    *,
    end: int,
    deep: bool,
    is_hashed: bool,
) -> Iterator[str]:
    """Whether the tar, of `end` bytes, holds what the index says, and whether that can be used."""
    wanted = [(f"{e.key}.{name}", *place) for e in index.entries for name, place in e.members.items()]
    broken: dict[str, list[str]] = {}
    with folder.open(stats.name) as file:
        try:
            with tarfile.open(fileobj=file) as tar:
                if sorted((member.name, member.offset_data, member.size) for member in tar) != sorted(wanted):
                    yield "its members are not where the index says"
        except tarfile.TarError as error:
            yield f"no whole tar ({error})"
        for entry in index.entries:
            members = {}
            for name, (offset, size) in entry.members.items():
                file.seek(min(offset, end))
                members[name] = file.read(min(size, end))
            if fault := fault_of(members, forms, deep=deep, is_hashed=is_hashed):
                broken.setdefault(fault, []).append(entry.key)
    yield from by_fault(broken)


def _size(folder: Folder, name: str) -> int | None:
    try:
        return folder.size(name)
    except FileNotFoundError:
        return None


def _sha256(folder: Folder, name: str) -> str:
    digest = hashlib.sha256()
    with folder.open(name) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _repair(args: argparse.Namespace, folder: Folder, manifest: Manifest, damaged: Sequence[str]) -> int:
    """Make the damaged shards again with the manifest's settings, and check them."""
    settings = _settings_of(manifest, args)
    with list_images(args.images, settings.source) as listing:
        # Refuses other images, settings and library versions; nothing is removed, whatever happens.
        made = make_missing(Plan(listing, settings), args.shards, images=args.images, remake=damaged).manifest
    numbers = [number for number, stats in enumerate(made.shards) if stats.name in damaged]
    left = [fault for number in numbers for fault in check_shard(folder.root, made, number, args.deep)]
    left += [fault for fault in _about_set(folder, made) if not fault.endswith(NOT_OURS)]
    print(one_line(f"{args.shards}: {len(damaged)} shards made again; {'; '.join(left) or 'whole'}"))
    return EXIT_DAMAGED if left else 0


def _settings_of(manifest: Manifest, args: argparse.Namespace) -> ShardSettings:
    """The settings that the set was made with; the files of its filters, which it does not know, are the user's."""
    given = load_settings(ShardSettings, "shards", args.config, args.set)
    try:
        made = ShardSettings.model_validate(manifest.settings)
    except ValidationError as error:
        raise InputError(
            f"{args.shards}/{MANIFEST_NAME}: settings that this r2o cannot make shards with ({first_problem(error)}); "
            "take the r2o that made them"
        ) from None
    source = made.source.model_copy(update={"classes": given.source.classes, "names": given.source.names})
    limit = 0.0 if manifest.over_limit else 1.0  # leaves the mark as it is
    return made.model_copy(update={"source": source, "max_bad_fraction": limit, "workers": given.workers})


if __name__ == "__main__":
    sys.exit(main())
