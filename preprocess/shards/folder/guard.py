"""What must not be lost: images that lie where shards are to go, and files in SHARDS that are no shards."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts.fingerprint import differences
from pipeline.artifacts.manifest import MANIFEST_NAME, QUARANTINE_NAME, Manifest
from pipeline.artifacts.names import Prefix
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, is_url, place_of
from pipeline.foundation.locks import LOCK_NAME
from preprocess.shards.folder.records import JOB_FOLDER, JOB_NAME, JobRecord
from preprocess.shards.plan import Plan
from preprocess.sources.listing import Listing

SHARD_FILE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)-[0-9]{6,}\.(tar|index)")
NOTE_FILE = re.compile(rf"{SHARD_FILE.pattern}\.json")
OTHER_FILES = (MANIFEST_NAME, QUARANTINE_NAME, JOB_NAME, LOCK_NAME)  # that a job writes
LEFT_BEHIND = re.compile(r"\.(.+)\.\w+\.tmp")
OUR_MEMBERS = {"format_version", "settings", "fingerprint", "shards"}  # of a manifest, in every format
NO_SHARDS = "SHARDS must be an empty or new folder"


def require_apart(listing: Listing, shards: Folder) -> None:
    """That neither SHARDS lies among the images nor they in it.

    There, shards would be listed as images, and images removed with shards.

    Raises:
        InputError: they do not lie apart.
    """
    root, images = shards.root, listing.walked or listing.root
    apart = "choose a SHARDS folder apart from IMAGES"
    if _is_within(images, root):
        raise InputError(f"{root}: the images of {images} lie in it; {apart}")
    if listing.walked is not None:
        if _is_within(root, listing.walked):
            raise InputError(f"{root}: lies among the images of {images}; {apart}")
    elif listing.kind == "files" and _is_within(root, listing.root):  # of a list, which names some below its folder
        inside = os.fsencode(os.path.relpath(place_of(root)[1], place_of(listing.root)[1])) + b"/"
        if any(source.name.startswith(inside) for source in listing):
            raise InputError(f"{root}: {listing.described} names images in it; {apart}")
    if not is_url(listing.root):
        for path in (os.path.join(listing.root, os.fsdecode(name)) for name in sorted(listing.archives)):
            if os.path.islink(path) and _is_within(path, root):
                raise InputError(f"{root}: {path} leads into it; {apart}")


def require_only_ours(folder: Folder, found: Collection[str], *, own: str) -> None:
    """That a folder holds nothing but what a job of shards leaves.

    A tar of another prefix than our `own` is a shard where any of that prefix has its index beside it.

    Raises:
        InputError: it names what else there is.
    """
    pairs = (match[1] for name in found if (match := SHARD_FILE.fullmatch(name)) and _other_half(name) in found)
    shards = set(shards_named({own, *pairs}, found))
    ours = {MANIFEST_NAME, QUARANTINE_NAME, JOB_FOLDER, *shards}
    if others := [name for name in found if name not in ours and not is_left_behind(name)]:
        raise InputError(f"{folder.root}: holds {min(others)!r} but no shards; {NO_SHARDS}")


def require_only_notes(job_folder: Folder, found: Collection[str]) -> None:
    """That a job's own folder, which goes when it ends, holds nothing else. Raises InputError."""
    ours = (JOB_NAME, LOCK_NAME)
    if others := [n for n in found if n not in ours and not NOTE_FILE.fullmatch(n) and not is_left_behind(n)]:
        raise InputError(f"{job_folder.root}: holds {min(others)!r}, which no job of shards left; move it away")


def other_than(plan: Plan, theirs: Manifest | JobRecord) -> str:
    """What makes the shards that are there another job's than a plan's."""
    changed = differences(plan.settings.content(), theirs.settings)
    changed += differences(plan.versions, theirs.versions, "version of ")
    if not changed:
        same = "as many, but other names, sizes or places"
        changed = [f"the list of images: {same if plan.total == theirs.listed else f'{theirs.listed} → {plan.total}'}"]
    return "; ".join(changed)


def has_its_quarantine(folder: Folder, manifest: Manifest) -> bool:
    """Whether quarantine.jsonl is the one that the manifest names."""
    try:
        return hashlib.sha256(folder.read(QUARANTINE_NAME)).hexdigest() == manifest.quarantine_sha256
    except FileNotFoundError:
        return False


def is_left_behind(name: str) -> bool:
    """Whether a killed writer of one of our files left it."""
    match = LEFT_BEHIND.fullmatch(name)
    patterns = (SHARD_FILE, NOTE_FILE)
    return match is not None and (match[1] in OTHER_FILES or any(p.fullmatch(match[1]) for p in patterns))


def replaceable(folder: Folder, found: Collection[str], record: JobRecord | None, *, own: str) -> tuple[str, ...]:
    """The prefixes of the shards that --overwrite removes.

    Args:
        found: what lies in the folder.
        record: of the job there, where one can be read.
        own: prefix of the shards that will be made.
    Raises:
        InputError: what lies there are no shards.
    """
    prefixes = {own} | ({str(record.settings.get("prefix")), *record.replaces} if record else set())
    is_known = record is not None
    if MANIFEST_NAME in found:
        data = folder.read(MANIFEST_NAME)
        try:
            loaded = json.loads(data)
        except (ValueError, RecursionError):
            is_known = False  # damaged, or another program's
        else:
            if not isinstance(loaded, dict) or not loaded.keys() >= OUR_MEMBERS:
                raise InputError(f"{folder.root}: its {MANIFEST_NAME} is another program's; {NO_SHARDS}")
            is_known = True
            prefixes |= {str(loaded["settings"].get("prefix"))} if isinstance(loaded["settings"], dict) else set()
    if not is_known:
        require_only_ours(folder, found, own=own)
        prefixes |= {match[1] for name in found if (match := SHARD_FILE.fullmatch(name))}
    return tuple(sorted(filter(_is_prefix, prefixes)))


def shards_named(prefixes: Collection[str], found: Collection[str]) -> list[str]:
    """Those of the names found that are shards, or indexes, of these prefixes."""
    return [name for name in found if (match := SHARD_FILE.fullmatch(name)) and match[1] in prefixes]


def _is_prefix(text: str) -> bool:
    try:
        TypeAdapter(Prefix).validate_python(text)
    except ValidationError:
        return False
    return True


def _other_half(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{'index' if kind == 'tar' else 'tar'}"


def _is_within(inner: str, outer: str) -> bool:
    (store, path), (other_store, other) = place_of(inner), place_of(outer)
    if store != other_store:
        return False
    if store:
        return f"{path.rstrip('/')}/".startswith(f"{other.rstrip('/')}/")
    return any(_is_same(folder, other) for folder in (Path(path), *Path(path).parents))


def _is_same(folder: Path, other: str) -> bool:
    try:
        return os.path.samefile(folder, other)  # also where one is a mount of the other
    except OSError:
        return str(folder) == other
