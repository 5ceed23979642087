"""What must not be lost: images that lie where shards are to go, and files in SHARDS that are no shards."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.artifacts.manifest import MANIFEST_NAME, QUARANTINE_NAME
from pipeline.artifacts.names import Prefix
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import is_temporary
from pipeline.foundation.folders import Folder, is_url
from preprocess.shards.folder.records import JOB_FOLDER, JobRecord
from preprocess.sources.listing import Listing

SHARD_FILE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)-\d{6,}\.(tar|index)")
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
        inside = os.fsencode(os.path.relpath(_plain(root), _plain(listing.root))) + b"/"
        if any(source.name.startswith(inside) for source in listing):
            raise InputError(f"{root}: {listing.described} names images in it; {apart}")


def require_only_ours(folder: Folder, found: Collection[str]) -> None:
    """That a folder holds nothing but what a job of shards leaves. Raises InputError, naming what else there is."""
    ours = (MANIFEST_NAME, QUARANTINE_NAME, JOB_FOLDER)
    others = [n for n in found if n not in ours and not SHARD_FILE.fullmatch(n) and not is_temporary(Path(n))]
    if others:
        raise InputError(f"{folder.root}: holds {min(others)!r} but no shards; {NO_SHARDS}")


def replaceable(folder: Folder, found: Collection[str], record: JobRecord | None, *, own: str) -> tuple[str, ...]:
    """The prefixes of the shards that --overwrite removes.

    Args:
        found: what lies in the folder.
        record: of the job there, where one can be read.
        own: prefix of the shards that will be made.
    Raises:
        InputError: what lies there are no shards.
    """
    prefixes = {own} | ({str(record.settings.get("prefix"))} if record else set())
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
        require_only_ours(folder, found)
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


def _is_within(inner: str, outer: str) -> bool:
    if is_url(inner) or is_url(outer):
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    place = Path(_plain(inner))
    return any(_is_same(folder, _plain(outer)) for folder in (place, *place.parents))


def _plain(place: str) -> str:
    return place.rstrip("/") if is_url(place) else os.path.realpath(place)


def _is_same(folder: Path, other: str) -> bool:
    try:
        return os.path.samefile(folder, other)  # also where one is a mount of the other
    except OSError:
        return str(folder) == other
