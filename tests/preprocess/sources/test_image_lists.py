"""Text files that list images."""

from __future__ import annotations

import errno
import os

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from tests.preprocess.sources.named_files import paths, touch

LISTED = b"b/2.jpg\n\n./a.jpg\r\n  \nno suffix\ngone.jpg\n%b/abs.jpg\nraw\xff.jpg"


def test_a_list_keeps_its_order(tmp_path):
    touch(tmp_path, "a.jpg", "b/2.jpg", "no suffix", "abs.jpg", "raw\udcff.jpg", "unlisted.jpg")
    (tmp_path / "some.txt").write_bytes(LISTED % os.fsencode(tmp_path))
    listing = list_images(tmp_path / "some.txt")
    expected = [
        (b"b/2.jpg", 5),
        (b"a.jpg", 5),
        (b"no suffix", 5),
        (b"gone.jpg", 0),
        (b"abs.jpg", 5),
        (b"raw\xff.jpg", 5),
    ]
    assert [(source.name, source.size) for source in listing] == expected
    assert (listing.root, listing.described) == (str(tmp_path), "the list some.txt")
    assert listing.classes == ()


def test_a_list_of_find_print0(tmp_path):
    names = [b"b/new\nline.jpg", b"a/\r.jpg", b"a/ .jpg"]
    touch(tmp_path, *(os.fsdecode(name) for name in names))
    (tmp_path / "files.anything").write_bytes(b"".join(b"./" + name + b"\0" for name in names))
    assert paths(tmp_path / "files.anything", format="list") == names
    assert list_images(tmp_path / "files.anything", SourceSettings(format="list")).classes == ("a", "b")


def test_a_list_behind_a_url(memory):
    memory.pipe("/bucket/b/2.jpg", b"123")
    memory.pipe("/bucket/some.lst", b"\xef\xbb\xbfb/2.jpg\nmemory://bucket/gone.jpg\n")
    listing = list_images("memory://bucket/some.lst")
    assert [(source.name, source.size) for source in listing] == [(b"b/2.jpg", 0), (b"gone.jpg", 0)]


@pytest.mark.parametrize("line", ["/etc/a.jpg", "../a.jpg", "b/../../a.jpg", "s3://bucket/a.jpg"])
def test_a_list_stays_in_its_folder(tmp_path, line):
    (tmp_path / "some.txt").write_text(f"a.jpg\n{line}\n")
    with pytest.raises(
        InputError, match=r"some\.txt: .*a\.jpg is not below the list's folder; keep the list above its images"
    ):
        list_images(tmp_path / "some.txt")


def test_a_list_that_names_an_image_twice(tmp_path):
    (tmp_path / "some.txt").write_text("a.jpg\nb.jpg\n./a.jpg\n")  # none is there, which is less to the point
    with pytest.raises(InputError, match=r"some\.txt: a\.jpg is there twice"):
        list_images(tmp_path / "some.txt")


def test_an_empty_list(tmp_path):
    (tmp_path / "some.txt").write_text("\n")
    with pytest.raises(InputError, match=r"no image in the list some\.txt"):
        list_images(tmp_path / "some.txt")


def test_a_list_of_which_no_image_is_there(tmp_path):
    (tmp_path / "some.txt").write_text("mount/a.jpg\nmount/b.jpg\n")
    message = r"some\.txt: of its 2 images none is there; is the folder that holds them mounted\?$"
    for _ in range(2):  # without the mount point, and with one that is empty
        with pytest.raises(InputError, match=message):
            list_images(tmp_path / "some.txt")
        (tmp_path / "mount").mkdir(exist_ok=True)
    touch(tmp_path, "mount/b.jpg")
    assert [source.size for source in list_images(tmp_path / "some.txt")] == [0, 5]


def test_a_disk_that_fails_is_no_image_that_is_not_there(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "some.txt").write_text("a.jpg\nb.jpg\n")
    whole = os.stat

    def stat(path, *arguments, **named):
        if os.fsencode(path).endswith(b"b.jpg"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return whole(path, *arguments, **named)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(InputError, match=r"b\.jpg: cannot be listed \(Input/output error\)"):
        list_images(tmp_path / "some.txt")
