from __future__ import annotations

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from preprocess.sources import reader as readers
from preprocess.sources.listing import Part, Source
from preprocess.sources.reader import Reader

DATA = random.Random(0).randbytes(100_000)
ODD = [b"a b.jpg", b"caf\xc3\xa9.jpg", b"raw\xff.jpg", b"new\nline.jpg", b"sub/#?%20.jpg"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def at(root: Path, name: bytes) -> Path:
    return root / os.fsdecode(name)


def test_files_of_any_name(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(ODD):
        at(tmp_path, name).write_bytes(DATA[: number * 1000])
    for root in (str(tmp_path), f"file://{tmp_path}"):
        with Reader(root, "files") as reader:
            assert [reader.read(Source(name, 0)) for name in ODD] == [DATA[: n * 1000] for n in range(len(ODD))]


def test_files_behind_a_url(memory: fsspec.AbstractFileSystem):
    names = [name.decode() for name in ODD if name != b"raw\xff.jpg"]
    for name in names:
        memory.pipe(f"/set/{name}", name.encode() * 9)
    with Reader("memory://set", "files") as reader:
        assert [reader.read(Source(name.encode(), 0)) for name in names] == [name.encode() * 9 for name in names]
        with pytest.raises(FileNotFoundError):
            reader.read(Source(b"gone.jpg", 0))


def test_what_the_file_system_says_is_passed_on(tmp_path: Path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    expected = {b"gone.jpg": errno.ENOENT, b"folder.jpg": errno.EISDIR, b"loop.jpg": errno.ELOOP}
    with Reader(str(tmp_path), "files") as reader:
        for name, number in expected.items():
            with pytest.raises(OSError) as caught:  # noqa: PT011 its number is asked below
                reader.read(Source(name, 5))
            assert caught.value.errno == number


@pytest.mark.parametrize("where", ["local", "url"])
def test_ranges_and_the_parts_beside_them(tmp_path: Path, memory: fsspec.AbstractFileSystem, where: str):
    (tmp_path / "a.tar").write_bytes(DATA)
    memory.pipe("/set/a.tar", DATA)
    with Reader(str(tmp_path) if where == "local" else "memory://set", "ranges") as reader:
        for offset, size in ((0, 10), (99_990, 10), (5, 0), (100_000, 0), (0, 100_000), (512, 4096)):
            source = Source(b"x.jpg", size, file=b"a.tar", offset=offset)
            assert reader.read(source) == DATA[offset : offset + size]
            assert reader.read_part(source, Part("cls", 7, 9)) == DATA[7:16]


@pytest.mark.parametrize("where", ["local", "url"])
def test_an_archive_that_fails_is_no_image_that_fails(tmp_path: Path, memory: fsspec.AbstractFileSystem, where: str):
    (tmp_path / "a.tar").write_bytes(DATA)
    memory.pipe("/set/a.tar", DATA)
    with Reader(str(tmp_path) if where == "local" else "memory://set", "ranges") as reader:
        with pytest.raises(OSError, match=r"a\.tar: only 10 of 11 bytes are there at byte 99990") as short:
            reader.read(Source(b"x.jpg", 11, file=b"a.tar", offset=99_990))
        with pytest.raises(OSError, match=r"gone\.tar: ") as gone:
            reader.read(Source(b"x.jpg", 11, file=b"gone.tar"))
    assert (short.value.errno, gone.value.errno) == (errno.EIO, errno.EIO)
    assert not isinstance(gone.value, FileNotFoundError)


def test_nothing_is_open_before_and_after_and_little_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "OPEN_FILES", 3)
    for number in range(8):
        (tmp_path / f"{number}.tar").write_bytes(DATA[number : number + 100])
    before = open_files()
    with Reader(str(tmp_path), "ranges") as reader:
        assert open_files() == before
        for number in [0, 1, 2, 0, 3, 0, *range(8), 7, 7]:
            source = Source(b"x", 50, file=b"%d.tar" % number, offset=50)
            assert reader.read(source) == DATA[number + 50 : number + 100]
            assert open_files() <= before + 3
        assert list(reader._open) == [b"5.tar", b"6.tar", b"7.tar"]
    assert open_files() == before


def test_what_was_used_last_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readers, "OPEN_FILES", 2)
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    with Reader(str(tmp_path), "ranges") as reader:
        for name in b"a", b"b", b"a", b"c":
            assert reader.read(Source(b"x", 1, file=name)) == name
        assert list(reader._open) == [b"a", b"c"]


def test_several_threads_behind_a_url(memory: fsspec.AbstractFileSystem):
    memory.pipe("/set/a.tar", DATA)
    gate = threading.Barrier(4)

    def read(number: int) -> bytes:
        if number < 4:
            gate.wait(10)
        return reader.read(Source(b"x", 100, file=b"a.tar", offset=number * 100))

    with Reader("memory://set", "ranges") as reader, ThreadPoolExecutor(4) as threads:
        assert b"".join(threads.map(read, range(1000))) == DATA


def test_nothing_is_touched_until_asked(tmp_path: Path):
    for kind in ("files", "ranges", "rows"):
        Reader(str(tmp_path / "nowhere"), kind, "image").close()  # type: ignore[arg-type]
