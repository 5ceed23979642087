"""Which images there are, by name alone: folders, list files, tars, WebDataset, Parquet, COCO; a path or a URL."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, LocalFolder, folder_at, is_url, local_path
from preprocess.config import SourceSettings
from preprocess.sources import parquet, tars
from preprocess.sources.detect_format import (
    ARCHIVES,
    DATA_SET_PARTS,
    LIST_SUFFIXES,
    kind_of_file,
    kind_of_files,
    kind_of_folder,
)
from preprocess.sources.folders import IMAGE_SUFFIXES, images_below, images_named_in
from preprocess.sources.listing import Listing
from preprocess.sources.selection import Selection


class Origin(NamedTuple):
    """Where to look: the folder, and the files in it (none: all that there are)."""

    folder: Folder
    files: list[str]
    settings: SourceSettings


def list_images(place: str | os.PathLike[str], settings: SourceSettings | None = None) -> Listing:
    """Every image at a path or URL, in an order that depends on nothing but their names and archives.

    The last part of a path may be a pattern for tars and Parquet files, `train-*.tar`.

    Raises:
        InputError: the place is missing, cannot be read, is damaged or of no known format, holds no image or two of
            one name; a filter names what is not there.
    """
    settings = settings or SourceSettings()
    place = os.fspath(place)
    root = place.rstrip("/") if is_url(place) else str(local_path(place))
    try:
        listing = _listed(root, settings)
    except FileNotFoundError:
        raise InputError(f"{root}: no such file or folder; give one that holds images") from None
    except OSError as error:
        where = os.fsdecode(error.filename or root)
        why = error.strerror or error
        raise InputError(f"{where}: cannot be listed ({why}); make it readable or move it away") from None
    if not len(listing):
        listing.close()
        raise InputError(_nothing_found(root, listing, settings))
    if (name := listing.repeated()) is not None:
        listing.close()
        raise InputError(f"{root}: {os.fsdecode(name)} is there twice; give every image its own name")
    if listing.all_gone:
        listing.close()
        raise InputError(f"{root}: of its {len(listing)} images none is there; is the folder that holds them mounted?")
    return listing


def _listed(root: str, settings: SourceSettings) -> Listing:
    parent, _, name = root.rpartition("/")
    beside = folder_at(parent or "/", follow_links=True)
    kind: str = settings.format
    if not _is_file(beside, name) and kind != "list":
        files = _matching(beside, name) if kind in ("auto", *ARCHIVES) else []
        folder = beside if files else folder_at(root, follow_links=True)
        if kind == "auto":
            kind = kind_of_files(files, root) if files else kind_of_folder(folder, root, settings)
    elif kind in ("folder", "coco"):
        raise InputError(f"{root}: a file, but shards.source.format={kind} takes a folder; give one")
    else:
        folder, files = beside, [name]
        kind = kind_of_file(beside, name, root, settings) if kind == "auto" else kind
    selection = Selection(settings)
    listing = _FORMATS[kind](Origin(folder, files, settings), selection)
    selection.check()
    return listing


def _is_file(folder: Folder, name: str) -> bool:
    """Whether it is a file; behind a URL, where asking costs, only what has the suffix of a source may be one."""
    if isinstance(folder, LocalFolder):
        return (folder.path / name).is_file()
    if not name.lower().endswith((*ARCHIVES.values(), *LIST_SUFFIXES, *tars.COMPRESSED)):
        return False
    try:
        return folder.size(name) > 0
    except FileNotFoundError:
        return False


def _matching(folder: Folder, pattern: str) -> list[str]:
    """The files that match, none where it is no pattern or a folder's name."""
    if not any(sign in pattern for sign in "*?[") or folder.below(pattern).exists():
        return []
    files = fnmatch.filter(folder.names(), pattern)
    if not files:
        raise FileNotFoundError(pattern)
    return files


def _archives_of(origin: Origin, kind: str) -> list[str]:
    """The files of a format that ends in a suffix of its own.

    Raises:
        InputError: there is none, or training and validation files are in one folder and the user did not choose.
    """
    if origin.files:
        return origin.files
    suffix, root = ARCHIVES[kind], origin.folder.root
    names = [name for name in origin.folder.names() if name.endswith(suffix) and not name.startswith(".")]
    if not names:
        if not origin.folder.exists():
            raise FileNotFoundError(root)
        raise InputError(f"{root}: no file ends in {suffix}; give a folder of such files")
    parts = {
        DATA_SET_PARTS[word] for name in names for word in re.split(r"[^a-z]+", name.lower()) if word in DATA_SET_PARTS
    }
    if len(parts) > 1:
        which = ", ".join(sorted(parts))
        raise InputError(f"{root}: files of {which} in one; give a pattern, like {root}/*train*{suffix}")
    return names


def _list_folder(origin: Origin, chosen: Selection) -> Listing:
    root = origin.folder.root
    listing = Listing(root=root, kind="files", described="a folder", walked=root)
    chosen.add(listing, images_below(origin.folder))
    listing.described = "class folders" if listing.has_classes else listing.described
    return listing


def _list_coco(origin: Origin, chosen: Selection) -> Listing:
    folder, split = origin.folder, origin.settings.split
    if split not in folder.names():
        raise InputError(f"{folder.root}: no folder {split}; set shards.source.split to the one that holds images")
    walked = folder.below(split).root
    listing = Listing(root=folder.root, kind="files", described=f"COCO's {split}", class_folders=False, walked=walked)
    prefix = os.fsencode(split) + b"/"
    found = images_below(folder.below(split))
    chosen.add(listing, (source and source._replace(name=prefix + source.name) for source in found))
    return listing


def _list_file(origin: Origin, chosen: Selection) -> Listing:
    name = origin.files[0]
    listing = Listing(root=origin.folder.root, kind="files", described=f"the list {name}", may_repeat=True)
    chosen.add(listing, images_named_in(origin.folder, name))
    if isinstance(origin.folder, LocalFolder):
        listing.all_gone = not any(source.was_there for source in listing)
    return listing


def _list_tar(origin: Origin, chosen: Selection) -> Listing:
    names, inside = _archives_of(origin, "tar"), list[bytes]()
    described = f"the archive {names[0]}" if origin.files else _number(len(names), "tar")
    listing = Listing(root=origin.folder.root, kind="ranges", described=described, may_repeat=True)
    for name in names:
        prefix = b"" if origin.files else os.fsencode(name.removesuffix(".tar")) + b"/"
        chosen.add(listing, tars.images_in_tar(origin.folder, name, prefix=prefix, tars=inside))
    listing.described += f" of {_number(len(inside), 'tar')}" if inside else ""
    return listing


def _list_webdataset(origin: Origin, chosen: Selection) -> Listing:
    names = _archives_of(origin, "webdataset")
    described = _number(len(names), "WebDataset shard")
    listing = Listing(root=origin.folder.root, kind="ranges", described=described, class_folders=False, may_repeat=True)
    for name in names:
        for source, members in tars.samples_of(origin.folder, name, origin.settings.image):
            chosen.add(listing, [source] if source else [None] * members)
    return listing


def _list_parquet(origin: Origin, chosen: Selection) -> Listing:
    folder, files = origin.folder, _archives_of(origin, "parquet")
    column = parquet.image_column(folder, files[0], origin.settings.image)
    described = f"column {column} of {_number(len(files), 'Parquet file')}"
    listing = Listing(root=folder.root, kind="rows", described=described, class_folders=False, column=column)
    for name in files:
        parquet.image_column(folder, name, column)
        listing.note(f"{name}: {folder.size(name)}".encode(errors="surrogateescape"))
        chosen.add(listing, parquet.rows_of(folder, name))
    return listing


_FORMATS: dict[str, Callable[[Origin, Selection], Listing]] = {
    "folder": _list_folder,
    "list": _list_file,
    "tar": _list_tar,
    "webdataset": _list_webdataset,
    "parquet": _list_parquet,
    "coco": _list_coco,
}


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _nothing_found(root: str, listing: Listing, settings: SourceSettings) -> str:
    suffixes = ", ".join(sorted(suffix.decode() for suffix in IMAGE_SUFFIXES))
    if listing.described == "a folder":
        if not listing.ignored:
            return f"{root}: the folder is empty; give one that holds images ({suffixes})"
        return f"{root}: no image among its files ({listing.ignored} ignored); images end in {suffixes}"
    if settings.image:
        return f"{root}: no {settings.image} in {listing.described}; set shards.source.image to what holds the image"
    return f"{root}: no image in {listing.described} ({listing.ignored} other entries); images end in {suffixes}"
