"""Images that are files of their own: folders of them, on a disk or behind a URL, and lists of their names."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Iterator

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import stamp_of
from pipeline.foundation.folders import Folder, LocalFolder
from pipeline.foundation.remote_folder import RemoteFolder
from preprocess.sources.listing import Source

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
IMAGE_SUFFIXES = frozenset(f".{extension}".encode() for extension in IMAGE_EXTENSIONS)
NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})  # by its name alone


def is_image(name: bytes) -> bool:
    """Whether a name ends as an image's does, in any case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def images_below(folder: Folder) -> Iterator[Source | None]:
    """Every image below a folder in the order of the path bytes, None for each entry that is none.

    Images are regular files with an image's suffix, in any case, and links to such files; a dangling link too, so
    that it ends in quarantine and not in silence. Links to folders are followed unless they lead into themselves.
    Everything else (other suffixes, hidden entries, looping links, devices) is none. In memory is a folder at a time.
    """
    if isinstance(folder, LocalFolder):
        return _walk_local(os.fsencode(folder.path), b"", ancestors=())
    assert isinstance(folder, RemoteFolder)
    return _walk_remote(folder, b"")


def images_named_in(folder: Folder, name: str) -> Iterator[Source]:
    """Every image that a list in `folder` names, in its order: one a line, or NUL after each where it holds a NUL.

    A name is a path relative to the folder, or the whole path or URL of what lies in it, of any suffix. What is not
    there is a source of size 0, so that it ends in quarantine; so is everything behind a URL, where asking for the
    size would be a request for each.

    Raises:
        InputError: a name leads out of the folder. OSError: whether an image is there cannot be said.
    """
    data = folder.read(name).removeprefix(codecs.BOM_UTF8)
    root = os.fsencode(folder.root.rstrip("/")) + b"/"
    for line in data.split(b"\0") if b"\0" in data else re.split(rb"\r?\n", data):
        path = line.removeprefix(root).removeprefix(b"./")
        if not path.strip():
            continue
        if path.startswith(b"/") or b"://" in path or b".." in path.split(b"/"):
            where = f"{os.fsdecode(root)}{name}"
            raise InputError(
                f"{where}: {os.fsdecode(path)} is not below the list's folder; keep the list above its images"
            )
        yield _if_there(folder, path)


def _if_there(folder: Folder, path: bytes) -> Source:
    if not isinstance(folder, LocalFolder):
        return Source(path, 0)
    try:
        status = os.stat(os.path.join(os.fsencode(folder.path), path))
    except OSError as error:
        if error.errno in NOT_THERE:
            return Source(path, 0)
        raise
    return _source(path, status)


def _source(path: bytes, status: os.stat_result) -> Source:
    return Source(path, status.st_size, stamp=stamp_of(status) if stat.S_ISREG(status.st_mode) else 0)


def _walk_local(path: bytes, relative: bytes, *, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Source | None]:
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        yield None
        return
    with os.scandir(path) as entries:
        found = sorted((entry.name + b"/" * _is_folder(entry), entry) for entry in entries)
    for name, entry in found:
        if name.startswith(b"."):
            yield None
        elif name.endswith(b"/"):
            yield from _walk_local(entry.path, relative + name, ancestors=(*ancestors, identity))
        else:
            yield _image(entry, relative + name)


def _walk_remote(folder: RemoteFolder, relative: bytes) -> Iterator[Source | None]:
    for name, size, stamp in folder.entries():
        path = os.fsencode(name)
        if path.startswith(b"."):
            yield None
        elif size is None:
            yield from _walk_remote(folder.below(name.rstrip("/")), relative + path)
        else:
            yield Source(relative + path, size, stamp=stamp) if is_image(path) else None


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _image(entry: os.DirEntry[bytes], path: bytes) -> Source | None:
    """What is an image by name, None for what is not."""
    if not is_image(entry.name):
        return None
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        if error.errno == errno.ENOENT and entry.is_symlink():
            return Source(path, 0)
        raise
    return _source(path, status) if stat.S_ISREG(status.st_mode) else None
