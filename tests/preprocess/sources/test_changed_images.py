"""Images that are not, when they are read, what they were when they were listed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import NotAFileError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Listing, Source, stamps_digest
from preprocess.sources.reader import Reader
from tests.preprocess.sources.made_tars import tar_of
from tests.preprocess.sources.named_files import touch


@pytest.fixture
def hurried() -> Iterator[None]:
    """A wait without end is an error after a while."""

    def too_long(*_: object) -> None:
        raise TimeoutError("it waits")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def read_first(listing: Listing) -> bytes:
    with Reader(listing.root, listing.kind, listing.column) as reader:
        return reader.read(listing[0])


def rewritten(path: Path, data: bytes) -> None:
    """Other bytes, and another time however coarse the clock."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 1, before + 1))


def folder(root: Path) -> Path:
    touch(root, "a.jpg", "b.jpg")
    return root / "a.jpg"


def linked(root: Path) -> Path:
    touch(root.parent / "elsewhere", "a.jpg")
    (root / "a.jpg").symlink_to(root.parent / "elsewhere" / "a.jpg")
    return root.parent / "elsewhere" / "a.jpg"


def listed(root: Path) -> Path:
    (root / "some.txt").write_text("a.jpg\n")
    return folder(root)


def tar(root: Path) -> Path:
    (root / "x.tar").write_bytes(tar_of(["cat/1.jpg", "dog/2.jpg"]))
    return root / "x.tar"


def webdataset(root: Path) -> Path:
    (root / "x.tar").write_bytes(tar_of(["1.jpg", "1.cls", "2.jpg", "2.cls"]))
    return root / "x.tar"


def table(root: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table({"image": [b"one", b"two"]}), root / "x.parquet")
    return root / "x.parquet"


@pytest.mark.parametrize("make", [folder, linked, listed, tar, webdataset, table])
def test_another_content_of_the_same_size_stops_the_job(tmp_path: Path, make: Callable[[Path], Path]):
    (tmp_path / "in").mkdir()
    path = make(tmp_path / "in")
    listing = list_images(tmp_path / "in" / ("some.txt" if make is listed else ""))
    assert listing[0].stamp == path.stat().st_mtime_ns
    read_first(listing)
    rewritten(path, path.read_bytes())
    shown = tmp_path / "in" / ("a.jpg" if make in (folder, linked, listed) else path.name)
    message = f"{shown} changed after it was listed (it was written to); run the same command again"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        read_first(listing)


def test_another_size_stops_the_job_also_where_time_stands_still(tmp_path: Path):
    path = folder(tmp_path)
    listing, status = list_images(tmp_path), path.stat()
    path.write_bytes(b"123456")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(InputError, match=r"a\.jpg changed after it was listed \(5 bytes then, 6 now\); run the same"):
        read_first(listing)


def test_a_file_that_is_written_to_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder(tmp_path)
    listing, asked = list_images(tmp_path), []
    whole = Reader._compare_file

    def compare(reader: Reader, source: Source, descriptor: int) -> None:
        whole(reader, source, descriptor)
        if not asked:
            rewritten(path, b"other")
        asked.append(descriptor)

    monkeypatch.setattr(Reader, "_compare_file", compare)
    with pytest.raises(InputError, match=r"changed after it was listed \(it was written to\)"):
        read_first(listing)


def test_an_archive_that_changes_while_it_is_open(tmp_path: Path):
    path = tar(tmp_path)
    listing = list_images(tmp_path)
    with Reader(listing.root, listing.kind) as reader:
        reader.read(listing[0])
        rewritten(path, path.read_bytes())
        with pytest.raises(InputError, match=r"x\.tar changed after it was listed"):
            reader.read(listing[1])


def test_a_name_of_two_lines_is_told_in_one(tmp_path: Path):
    touch(tmp_path, "new\nline.jpg")
    listing = list_images(tmp_path)
    rewritten(tmp_path / "new\nline.jpg", b"other")
    with pytest.raises(InputError, match=r"/new%0Aline\.jpg changed after"):
        read_first(listing)


def test_behind_a_url_versions_are_stamps_and_sizes_are_compared(memory: fsspec.AbstractFileSystem):
    memory.pipe("/set/a.jpg", b"12345")
    before = list_images("memory://set")[0]
    memory.pipe("/set/a.jpg", b"other")
    listing = list_images("memory://set")
    assert 0 != before.stamp != listing[0].stamp != 0
    assert read_first(listing) == b"other"
    memory.pipe("/set/a.jpg", b"longer than that")
    with pytest.raises(InputError, match=r"memory://set/a\.jpg changed after it was listed \(5 bytes then, 16 now\)"):
        read_first(listing)


def test_what_is_stamped_does_not_enter_the_hash(tmp_path: Path):
    path = folder(tmp_path)
    before = list_images(tmp_path)
    rewritten(path, b"other")
    after = list_images(tmp_path)
    assert before.sha256 == after.sha256
    assert stamps_digest(before) != stamps_digest(after) == stamps_digest(list_images(tmp_path))


def test_a_digest_of_stamps_knows_name_size_and_stamp():
    one = Source(b"a", 12, stamp=3)
    others = [one._replace(name=b"b"), one._replace(size=1, stamp=23), one._replace(stamp=2**64 - 1)]
    assert len({stamps_digest([source]) for source in (one, *others)}) == 4
    assert stamps_digest([one, others[0]]) != stamps_digest([others[0], one])
    assert stamps_digest([one]) == stamps_digest([one._replace(offset=7, class_name="c")])


def test_stamps_are_kept_however_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("preprocess.sources.listing.BUFFERED", 7)
    sources = [Source(b"%d" % n, n, stamp=(n * 2**60 + n) % 2**64) for n in range(50)]
    listing = Listing(root="r", kind="files", described="made up")
    for source in sources:
        listing.add(source)
    assert list(listing) == sources


def test_a_time_before_1970_is_a_stamp_too(tmp_path: Path):
    path = folder(tmp_path)
    os.utime(path, ns=(0, -5))
    assert list_images(tmp_path)[0].stamp == 2**64 - 5


@pytest.mark.usefixtures("hurried")
def test_a_pipe_in_place_of_an_image_is_not_waited_for(tmp_path: Path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "some.txt").write_text("pipe.jpg\na.jpg\ndevice.jpg\n")
    listing = list_images(tmp_path / "some.txt")
    assert [(source.size, source.stamp > 0) for source in listing] == [(0, False), (5, True), (0, False)]
    with Reader(listing.root, listing.kind) as reader:
        for number in (0, 2):
            with pytest.raises(NotAFileError, match="not a regular file"):
                reader.read(listing[number])
            assert not reader.is_readable(listing[number])
        (tmp_path / "a.jpg").unlink()
        os.mkfifo(tmp_path / "a.jpg")
        with pytest.raises(NotAFileError, match="not a regular file"):
            reader.read(listing[1])


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("name", ["x.tar", "x.parquet", "x.txt"])
def test_a_pipe_in_place_of_an_archive_or_a_list_is_refused(tmp_path: Path, name: str):
    os.mkfifo(tmp_path / name)
    kind = {"x.tar": "tar", "x.parquet": "parquet", "x.txt": "list"}[name]
    place = tmp_path / name if kind == "list" else tmp_path
    with pytest.raises(InputError, match=rf"{re.escape(name)}: cannot be listed \(not a regular file\)"):
        list_images(place, SourceSettings(format=kind))
