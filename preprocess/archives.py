"""Images inside tars, listed by reading nothing but headers; the images are read in place later.

A header walk of our own because tarfile takes some 40 µs a member, and ImageNet has 1.28 million. It knows what such
archives hold: ustar, GNU long names and pax names and sizes; what else there is, it refuses by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.storage import Folder, LocalFolder
from preprocess.listing import Part, Source

BLOCK = 512
REGULAR, GNU_NAME, PAX, IGNORED = b"0\x007", b"L", b"x", b"123456gK"
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
ReadAt = Callable[[int, int], bytes]


class Member(NamedTuple):
    """A member of a tar: `offset` is of its data, `is_file` false for folders, links and the like."""

    name: bytes
    offset: int
    size: int
    is_file: bool


def members_of(folder: Folder, name: str) -> Iterator[Member]:
    """The members of a tar, in order.

    Raises:
        InputError: it is compressed, cut off, damaged, or holds a kind of member that is unknown here.
    """
    with _reading(folder, name) as read_at:
        yield from _walk(read_at, 0, folder.size(name), f"{folder.root}/{name}")


def images_in_tar(folder: Folder, name: str, is_image: Callable[[bytes], bool]) -> Iterator[Source | None]:
    """Every image of a tar and of the tars inside it, None for what is neither.

    An image of an inner tar is named as if that were unpacked into a folder of its name.
    """
    where, file_name = f"{folder.root}/{name}", os.fsencode(name)
    with _reading(folder, name) as read_at:
        for member in _walk(read_at, 0, folder.size(name), where):
            plain = _plain(member.name)
            stem, _, suffix = plain.rpartition(b".")
            if member.is_file and suffix.lower() == b"tar":
                inside = f"{where}: {os.fsdecode(plain)}"
                for inner in _walk(read_at, member.offset, member.offset + member.size, inside):
                    yield _image(inner, stem + b"/", file_name, is_image)
            else:
                yield _image(member, b"", file_name, is_image)


def samples_of(folder: Folder, name: str, wanted: str | None) -> Iterator[tuple[Source | None, int]]:
    """Every sample of a WebDataset tar with its number of members; None for one without image.

    A sample is a run of members that are equal up to the first dot of their base names; its image is the member
    `wanted`, else the first kind of IMAGE_EXTENSIONS that it has.

    Raises:
        InputError: a sample has a member twice, or as `members_of`.
    """
    group: dict[str, Member] = {}
    key = None
    for member in members_of(folder, name):
        if not member.is_file:
            continue
        folders, _, base = _plain(member.name).rpartition(b"/")
        stem, dot, extension = base.partition(b".")
        if not stem or not dot:  # no key, or nothing but a key
            yield None, 1
            continue
        if (folders, stem) != key:
            if group:
                yield _sample(name, group, wanted), len(group)
            group, key = {}, (folders, stem)
        text = extension.decode(errors="surrogateescape")
        if text in group:
            shown = os.fsdecode(member.name)
            raise InputError(f"{folder.root}/{name}: {shown} is there twice in one sample; make that archive again")
        group[text] = member
    if group:
        yield _sample(name, group, wanted), len(group)


def looks_like_samples(folder: Folder, name: str) -> bool:
    """Whether a tar is a shard of WebDataset: its first two files are equal up to the first dot."""
    stems = []
    for member in members_of(folder, name):
        if member.is_file:
            stems.append(_plain(member.name).rpartition(b"/")[2].partition(b".")[0])
        if len(stems) == 2:
            return stems[0] == stems[1]
    return False


@contextmanager
def _reading(folder: Folder, name: str) -> Iterator[ReadAt]:
    with folder.open(name) as file:

        def read_at(offset: int, count: int) -> bytes:
            if isinstance(folder, LocalFolder):
                return os.pread(file.fileno(), count, offset)
            file.seek(offset)
            return file.read(count)

        yield read_at


def _sample(name: str, group: dict[str, Member], wanted: str | None) -> Source | None:
    names = [wanted] if wanted else [e for kind in IMAGE_EXTENSIONS for e in group if e.lower() == kind]
    chosen = next((extension for extension in names if extension in group), None)
    if chosen is None:
        return None
    image = group.pop(chosen)
    others = tuple(Part(extension, member.offset, member.size) for extension, member in group.items())
    shown = os.fsencode(name) + b"/" + _plain(image.name)
    group[chosen] = image
    return Source(shown, image.size, file=os.fsencode(name), offset=image.offset, others=others)


def _image(member: Member, prefix: bytes, file: bytes, is_image: Callable[[bytes], bool]) -> Source | None:
    name = _plain(member.name)
    if not member.is_file:
        return None
    return Source(prefix + name, member.size, file=file, offset=member.offset) if is_image(name) else None


def _plain(name: bytes) -> bytes:
    """A member's name without what leads to nowhere: `./`, `/`."""
    return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))


def _walk(read_at: ReadAt, start: int, end: int, where: str) -> Iterator[Member]:
    position, long_name, long_size = start, None, None
    while True:
        header = read_at(position, BLOCK) if position + BLOCK <= end else b""
        if len(header) < BLOCK:
            raise InputError(f"{where}: cut off at byte {position} of {end}, before its end mark; fetch it again")
        if not header.strip(b"\0"):
            return
        kind, size = header[156:157], _checked_size(header, where, position)
        data = position + BLOCK
        if kind in PAX + GNU_NAME:
            body = read_at(data, size)
            if kind == GNU_NAME:
                long_name = body.rstrip(b"\0")
            else:
                pax = _pax(body)
                long_name = pax.get(b"path", long_name)
                long_size = int(pax[b"size"]) if b"size" in pax else None
        else:
            if kind not in REGULAR + IGNORED:
                raise InputError(f"{where}: a member of type {kind!r} at byte {position}; repack it as plain tar")
            size = long_size if long_size is not None else size
            is_file = kind in REGULAR
            if data + (size if is_file else 0) > end:
                raise InputError(f"{where}: cut off at byte {end}, inside a member; fetch it again")
            name = long_name if long_name is not None else _name(header)
            if kind not in b"gK":
                yield Member(name, data, size, is_file and not name.endswith(b"/"))
                long_name = long_size = None
        position = data + -(-size // BLOCK) * BLOCK if kind not in b"123456" else data


def _checked_size(header: bytes, where: str, position: int) -> int:
    for magic, name in MAGIC.items():
        if position == 0 and header.startswith(magic):
            raise InputError(f"{where}: compressed ({name}), so nothing can be read in place; decompress it first")
    try:
        stated = int(header[148:156].rstrip(b"\0 ") or b"-1", 8)
        if stated != sum(header) - sum(header[148:156]) + 8 * 32:
            raise ValueError
        if header[124] & 0x80:
            return int.from_bytes(header[125:136], "big")
        return int(header[124:136].rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise InputError(f"{where}: no tar header at byte {position}; the archive is damaged, or no tar") from None


def _name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax(body: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: `length key=value\\n` each."""
    records = {}
    while body.strip(b"\0"):
        length = int(body.split(b" ", 1)[0])
        key, _, value = body[:length].split(b" ", 1)[1].removesuffix(b"\n").partition(b"=")
        records[key] = value
        body = body[length:]
    return records
