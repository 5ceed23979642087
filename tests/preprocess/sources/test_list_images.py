"""Folders, here and behind URLs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Source
from tests.preprocess.sources.named_files import paths, touch


def test_every_suffix_in_any_case_and_nothing_else(tmp_path):
    listed = ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.GIF", "f.bmp", "g.tif", "h.TIFF"]
    touch(tmp_path, *listed, "notes.txt", "noend", "x.jpg.bak", ".hidden.jpg", ".thumbs/y.jpg")
    listing = list_images(tmp_path)
    assert [image.name.decode() for image in listing] == listed
    assert {image.size for image in listing} == {5}
    assert listing.ignored == 5
    assert listing.classes == ()


def test_classes_are_the_first_folders(tmp_path):
    touch(tmp_path, "dog/1.jpg", "cat/deep/er/1.jpg", "cat/2.jpg", "README.txt")
    listing = list_images(tmp_path)
    assert listing.classes == ("cat", "dog")
    assert [image.class_name for image in listing] == ["cat", "cat", "dog"]


def test_an_image_beside_the_folders_means_no_classes(tmp_path):
    touch(tmp_path, "dog/1.jpg", "0.jpg")
    listing = list_images(tmp_path)
    assert listing.classes == ()
    assert listing[1] == Source(b"dog/1.jpg", 5, stamp=(tmp_path / "dog/1.jpg").stat().st_mtime_ns)


def test_links_to_files_and_folders_are_followed_but_not_loops(tmp_path):
    images, store = tmp_path / "images", tmp_path / "store"
    touch(store, "real.jpg", "folder/inside.jpg")
    images.mkdir()
    (images / "link.jpg").symlink_to(store / "real.jpg")
    (images / "class").symlink_to(store / "folder")
    (images / "up").symlink_to(images)
    (images / "self.jpg").symlink_to("self.jpg")
    listing = list_images(images)
    assert [image.name for image in listing] == [b"class/inside.jpg", b"link.jpg"]
    assert listing.ignored == 2


def test_a_dangling_link_is_listed_for_quarantine(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    assert [(image.name, image.size) for image in list_images(tmp_path)] == [(b"gone.jpg", 0)]


def test_a_pipe_named_like_an_image_is_ignored(tmp_path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    listing = list_images(tmp_path)
    assert len(listing) == 1
    assert listing.ignored == 1


def test_a_folder_named_like_an_image_is_a_folder(tmp_path):
    touch(tmp_path, "album.jpg/1.jpg")
    assert paths(tmp_path) == [b"album.jpg/1.jpg"]


def test_names_are_bytes_and_order_is_theirs(tmp_path):
    names = [b"-dash.jpg", b"a b.jpg", b"caf\xc3\xa9.jpg", b"new\nline.jpg", b"raw\xff.jpg", b"two.dots.jpg"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"x")
    assert paths(tmp_path) == sorted(names)


def test_missing_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        list_images(tmp_path / "nowhere")


def test_file_instead_of_folder(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: a file that is no source of images"):
        list_images(tmp_path / "a.jpg")


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match="the folder is empty"):
        list_images(tmp_path)


def test_folder_of_text_says_how_many_were_ignored(tmp_path):
    touch(tmp_path, "a.txt", "b/c.txt")
    with pytest.raises(InputError, match=r"no image among its files \(2 ignored\)"):
        list_images(tmp_path)


def test_hash_follows_names_and_sizes(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    before = list_images(tmp_path).sha256
    touch(tmp_path, "c.txt")
    assert list_images(tmp_path).sha256 == before
    (tmp_path / "b.jpg").write_bytes(b"123456")
    assert list_images(tmp_path).sha256 != before


def test_order_is_that_of_whole_paths(tmp_path):
    names = ["a-b/1.jpg", "a.jpg", "a/2.jpg", "a0/1.jpg", "a/b/1.jpg", "a/b.jpg", "B/1.jpg", "é/1.jpg", "z.jpg"]
    touch(tmp_path, *names)
    assert paths(tmp_path) == sorted(name.encode() for name in names)


def test_a_folder_behind_a_url_is_the_folder(tmp_path, memory):
    names = ["dog/1.jpg", "dog-a/1.JPEG", "dog/deep/x.png", "cat/é a.jpg", "dog/.hidden.jpg", ".git/a.jpg", "cat/n.txt"]
    touch(tmp_path, *names)
    for name in names:
        memory.pipe(f"/bucket/set/{name}", b"12345")
    local, remote = list_images(tmp_path), list_images("memory://bucket/set/")
    assert [image._replace(stamp=0) for image in remote] == [image._replace(stamp=0) for image in local]
    assert (remote.sha256, remote.classes, remote.ignored) == (local.sha256, local.classes, local.ignored)
    assert remote.classes == ("cat", "dog", "dog-a")
    assert remote.root == "memory://bucket/set"
    assert local.described == remote.described == "class folders"


def test_nothing_behind_a_url(memory):
    memory.pipe("/bucket/set/readme.md", b"x")
    with pytest.raises(InputError, match="memory://bucket/nowhere: no such file or folder"):
        list_images("memory://bucket/nowhere")
    with pytest.raises(InputError, match=r"memory://bucket/nowhere\.tar: no such file or folder"):
        list_images("memory://bucket/nowhere.tar")
    with pytest.raises(InputError, match=r"no image among its files \(1 ignored\)"):
        list_images("memory://bucket/set")


def test_what_the_file_system_refuses_is_named(tmp_path):
    with pytest.raises(InputError, match=r"xx: cannot be listed \(File name too long\); make it readable"):
        list_images(tmp_path / ("x" * 300))
