from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"12345")


def paths(root: Path | str, **settings: object) -> list[bytes]:
    return [image.name for image in list_images(root, SourceSettings(**settings))]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


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
    assert listing[1] == Source(b"dog/1.jpg", 5)


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
    assert list(remote) == list(local)
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
    (tmp_path / "some.txt").write_text("a.jpg\nb.jpg\n./a.jpg\n")
    with pytest.raises(InputError, match=r"some\.txt: a\.jpg is there twice"):
        list_images(tmp_path / "some.txt")


def test_an_empty_list(tmp_path):
    (tmp_path / "some.txt").write_text("\n")
    with pytest.raises(InputError, match=r"no image in the list some\.txt"):
        list_images(tmp_path / "some.txt")


@pytest.mark.parametrize("inside", ["ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC"])
def test_kaggles_root_names_the_folder_to_give(tmp_path, inside):
    touch(tmp_path, f"{inside}/train/n01/1.JPEG", f"{inside}/val/1.JPEG", "LOC_val_solution.csv")
    with pytest.raises(InputError, match=f"train, val, test images in one; give {tmp_path}/{inside}/train"):
        list_images(tmp_path)
    listing = list_images(tmp_path / inside / "train")
    assert ([source.name for source in listing], listing.classes) == ([b"n01/1.JPEG"], ("n01",))


def test_training_and_validation_folders_are_not_mixed(tmp_path):
    touch(tmp_path, "train/n01/1.jpg", "val/n01/2.jpg", "labels.csv")
    with pytest.raises(InputError, match=f"train, val images in one; give {tmp_path}/train, or set"):
        list_images(tmp_path)
    assert paths(tmp_path, format="folder") == [b"train/n01/1.jpg", b"val/n01/2.jpg"]
    assert paths(tmp_path / "train") == [b"n01/1.jpg"]


def test_coco(tmp_path):
    touch(tmp_path, "annotations/instances.json", "train2017/2.jpg", "train2017/1.jpg", "val2017/3.jpg")
    listing = list_images(tmp_path)
    assert [source.name for source in listing] == [b"train2017/1.jpg", b"train2017/2.jpg"]
    assert (listing.classes, listing.described, listing.root) == ((), "COCO's train2017", str(tmp_path))
    assert paths(tmp_path, split="val2017") == [b"val2017/3.jpg"]
    assert paths(tmp_path / "train2017") == [b"1.jpg", b"2.jpg"]
    with pytest.raises(InputError, match=r"COCO without test2017; set shards\.source\.split to train2017 or val2017"):
        list_images(tmp_path, SourceSettings(split="test2017"))
    with pytest.raises(InputError, match="no folder nope"):
        list_images(tmp_path, SourceSettings(format="coco", split="nope"))


def test_archives_and_folders_in_one_ask_for_the_format(tmp_path):
    touch(tmp_path, "n01/1.jpg", "backup.tar")
    with pytest.raises(
        InputError, match=r"both \.tar files and folders; set shards\.source\.format=folder or webdataset"
    ):
        list_images(tmp_path)
    assert paths(tmp_path, format="folder") == [b"n01/1.jpg"]


def test_images_beside_archives_are_a_folder(tmp_path):
    touch(tmp_path, "1.jpg", "backup.tar", "data.parquet")
    listing = list_images(tmp_path)
    assert (len(listing), listing.ignored, listing.described) == (1, 2, "a folder")


@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_a_format_of_folders_on_a_file(tmp_path, kind):
    touch(tmp_path, "a.tar")
    with pytest.raises(InputError, match=rf"a\.tar: a file, but shards\.source\.format={kind} takes a folder"):
        list_images(tmp_path / "a.tar", SourceSettings(format=kind))


@pytest.mark.parametrize("kind", ["list", "tar", "webdataset", "parquet", "folder", "coco"])
def test_a_format_of_nothing(tmp_path, kind):
    with pytest.raises(InputError, match=r"nowhere: (no such|no folder)"):
        list_images(tmp_path / "nowhere", SourceSettings(format=kind))


def test_a_pattern_of_other_files(tmp_path):
    touch(tmp_path, "a.jpg", "b.jpg")
    with pytest.raises(InputError, match=r"the pattern matches a\.jpg"):
        list_images(tmp_path / "*.jpg")
    with pytest.raises(InputError, match="no such file or folder"):
        list_images(tmp_path / "*.jpg", SourceSettings(format="folder"))


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    touch(tmp_path, "set [1]/a.jpg", "set 1/b.jpg")
    assert paths(tmp_path / "set [1]") == [b"a.jpg"]


@pytest.fixture
def animals(tmp_path) -> Path:
    touch(tmp_path / "in", "n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n03/n03_1.JPEG", "n03/readme.txt")
    return tmp_path / "in"


def written(folder: Path, *lines: str) -> Path:
    path = folder.parent / "wanted.txt"
    path.write_text("\n".join(lines))
    return path


def test_chosen_classes(animals):
    wanted = written(animals, "# ImageNet-2", "n03 tench, Tinca tinca", "", "n01")
    listing = list_images(animals, SourceSettings(classes=wanted))
    assert [source.name for source in listing] == [b"n01/n01_1.JPEG", b"n01/n01_2.JPEG", b"n03/n03_1.JPEG"]
    assert listing.classes == ("n01", "n03")
    assert listing.ignored == 1


def test_chosen_names_are_base_names_or_paths(animals):
    wanted = written(animals, "n01_2.JPEG", "n02/n02_1.JPEG")
    assert paths(animals, names=wanted) == [b"n01/n01_2.JPEG", b"n02/n02_1.JPEG"]


def test_both_must_agree(animals):
    classes = written(animals, "n01", "n02")
    names = animals.parent / "names.txt"
    names.write_text("n01_2.JPEG\nn03_1.JPEG\n")
    assert paths(animals, classes=classes, names=names) == [b"n01/n01_2.JPEG"]


def test_what_matches_nothing_is_an_error(animals):
    wanted = written(animals, "n01", *(f"n9{number}" for number in range(5)))
    with pytest.raises(
        InputError, match=r"wanted\.txt: 5 of 6 classes match no image \(n90, n91, n92, …\); correct the file"
    ):
        list_images(animals, SourceSettings(classes=wanted))
    with pytest.raises(InputError, match=r"1 of 1 names match no image \(n01\)"):
        list_images(animals, SourceSettings(names=written(animals, "n01")))


def test_a_filter_that_is_empty_or_not_there(animals):
    with pytest.raises(InputError, match=r"shards\.source\.classes=.*wanted\.txt: names nothing"):
        list_images(animals, SourceSettings(classes=written(animals, "# nothing")))
    with pytest.raises(InputError, match=r"shards\.source\.names=.*gone\.txt: cannot be read"):
        list_images(animals, SourceSettings(names=animals / "gone.txt"))
