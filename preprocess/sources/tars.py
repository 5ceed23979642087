"""Images inside tars: which there are, and where their bytes lie. They are read in place later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, LocalFolder
from preprocess.sources.folders import IMAGE_EXTENSIONS, is_image
from preprocess.sources.listing import Part, Source
from preprocess.sources.tar_headers import Member, ReadAt, members_in

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def members_of(folder: Folder, name: str) -> Iterator[Member]:
    """The members of a tar, in order. Raises InputError as `members_in`."""
    with _reading(folder, name) as read_at:
        yield from members_in(read_at, 0, folder.size(name), f"{folder.root}/{name}")


def images_in_tar(folder: Folder, name: str, *, prefix: bytes, tars: list[bytes]) -> Iterator[Source | None]:
    """Every image of a tar and of the tars inside it, None for what is neither, each in the order of the archive.

    An image of an inner tar is named as if that were unpacked into a folder of its name, and all as if the tar were
    unpacked into `prefix`. What would be hidden there is no image. The names of the inner ones are added to `tars`.
    """
    where, file, stamp = f"{folder.root}/{name}", os.fsencode(name), folder.stamp(name)
    with _reading(folder, name) as read_at:
        for member in members_in(read_at, 0, folder.size(name), where):
            path = prefix + _plain(member.name)
            if not (member.is_file and path.lower().endswith(b".tar")) or _is_hidden(path):
                yield _image(member, path, file, stamp)
                continue
            tars.append(path)
            start, inside = member.offset, f"{where}: {os.fsdecode(member.name)}"
            for inner in members_in(read_at, start, start + member.size, inside):
                yield _image(inner, path[: -len(b".tar")] + b"/" + _plain(inner.name), file, stamp)


def samples_of(folder: Folder, name: str, wanted: str | None) -> Iterator[tuple[Source | None, int]]:
    """Every sample of a WebDataset tar with its number of members; None for one without image.

    A sample is a run of members that are equal up to the first dot of their base names; its image is the member
    `wanted`, else the first kind of IMAGE_EXTENSIONS that it has.

    Raises:
        InputError: a sample has a member twice, or as `members_in`.
    """
    stamp = folder.stamp(name)
    for group in _groups(folder, name):
        found = {e.lower(): e for e in reversed(group)}
        kinds = IMAGE_EXTENSIONS if wanted is None else (wanted.lower(),)
        image = next((found[kind] for kind in kinds if kind in found), None)
        yield None if image is None else _sample(name, group, image, stamp), len(group)


def looks_like_samples(folder: Folder, name: str, wanted: str | None) -> bool:
    """Whether a tar is a shard of WebDataset: its first file has others of its key beside it, and one is an image."""
    first = next((group for group in _groups(folder, name) if "" not in group), {})
    kinds = IMAGE_EXTENSIONS if wanted is None else (wanted.lower(),)
    return len(first) > 1 and any(extension.lower() in kinds for extension in first)


def _groups(folder: Folder, name: str) -> Iterator[dict[str, Member]]:
    """The members of each sample by what follows its key, in order; alone and unnamed what belongs to none."""
    group: dict[str, Member] = {}
    key = None
    for member in members_of(folder, name):
        folders, _, base = _plain(member.name).rpartition(b"/")
        stem, _, extension = os.fsdecode(base).partition(".")
        if not member.is_file or not stem or not extension:
            yield {"": member}
            continue
        if (folders, stem) != key:
            if group:
                yield group
            group, key = {}, (folders, stem)
        if extension in group:
            shown = os.fsdecode(member.name)
            raise InputError(f"{folder.root}/{name}: {shown} is there twice in one sample; make that archive again")
        group[extension] = member
    if group:
        yield group


@contextmanager
def _reading(folder: Folder, name: str) -> Iterator[ReadAt]:
    with folder.open(name) as file:

        def read_at(offset: int, count: int) -> bytes:
            if isinstance(folder, LocalFolder):
                return os.pread(file.fileno(), count, offset)
            file.seek(offset)
            return file.read(count)

        yield read_at


def _sample(name: str, group: dict[str, Member], extension: str, stamp: int) -> Source:
    image, file = group[extension], os.fsencode(name)
    others = tuple(Part(e, member.offset, member.size) for e, member in group.items() if e != extension)
    path = file + b"/" + _plain(image.name)
    return Source(path, image.size, file=file, offset=image.offset, others=others, stamp=stamp)


def _image(member: Member, path: bytes, file: bytes, stamp: int) -> Source | None:
    if not (member.is_file and is_image(path)) or _is_hidden(path):
        return None
    return Source(path, member.size, file=file, offset=member.offset, stamp=stamp)


def _is_hidden(path: bytes) -> bool:
    return path.startswith(b".") or b"/." in path


def _plain(name: bytes) -> bytes:
    """A member's name without what leads to nowhere: `./`, `/`."""
    if not (name.startswith((b".", b"/")) or b"//" in name or b"/./" in name):
        return name
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
