"""Tars made from nothing, and what is read of them."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Sequence

from preprocess.sources.listing import Listing
from preprocess.sources.reader import Reader


def body(name: str) -> bytes:
    """Bytes that no other member has, of a length of its own."""
    rng = random.Random(name.encode(errors="surrogateescape"))
    return rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000]))


def tar_of(names: Sequence[str], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name in names:
            info, data = tarfile.TarInfo(name), body(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def raw_tar(*entries: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for info, data in entries:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def kind_of(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b""


def read_all(listing: Listing) -> list[tuple[bytes, int, str | None, bytes]]:
    with Reader(listing.root, listing.kind, listing.column) as reader:
        return [(source.name, source.size, source.class_name, reader.read(source)) for source in listing]
