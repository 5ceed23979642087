"""WebDataset shards, which are tars too."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from preprocess.sources.reader import Reader
from tests.preprocess.sources.made_tars import body, read_all, tar_of

SAMPLES = [
    "d/1.jpg",
    "d/1.cls",
    "d/1.seg.png",
    "2.json",
    "2.PNG",
    "3.txt",
    "readme",
    "._4.jpg",
    "4.webp",
    "4.JPG",
    "5.bin",
]


def test_webdataset(tmp_path: Path):
    (tmp_path / "b.tar").write_bytes(tar_of(SAMPLES))
    (tmp_path / "a.tar").write_bytes(tar_of(["1.jpg", "1.cls"]))
    (tmp_path / "shards.json").write_text("{}")
    listing = list_images(tmp_path)
    names = [b"a.tar/1.jpg", b"b.tar/d/1.jpg", b"b.tar/2.PNG", b"b.tar/4.JPG"]
    assert [(n, data) for n, _, _, data in read_all(listing)] == [(n, body(n.decode()[6:])) for n in names]
    assert listing.described == "2 WebDataset shards"
    assert listing.classes == ()
    assert listing.ignored == 4
    with Reader(listing.root, listing.kind) as reader:
        parts = [{part.name: reader.read_part(source, part) for part in source.others} for source in listing]
    assert parts == [
        {"cls": body("1.cls")},
        {"cls": body("d/1.cls"), "seg.png": body("d/1.seg.png")},
        {"json": body("2.json")},
        {"webp": body("4.webp")},
    ]


def test_the_member_that_holds_the_image_can_be_named(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(SAMPLES))
    listing = list_images(tmp_path, SourceSettings(image="seg.PNG"))
    assert [name for name, *_ in read_all(listing)] == [b"a.tar/d/1.seg.png"]
    assert [part.name for part in listing[0].others] == ["jpg", "cls"]
    with pytest.raises(InputError, match=r"no rgb\.png in 1 WebDataset shard; set shards\.source\.image"):
        list_images(tmp_path, SourceSettings(image="rgb.png"))


@pytest.mark.parametrize(
    ("names", "described"),
    [
        (["1.jpg", "1.cls", "2.jpg", "2.cls"], "1 WebDataset shard"),
        (["img.0001.jpg", "img.0002.jpg"], "the archive a.tar"),
        (["cat/1.jpg", "dog/1.jpg"], "the archive a.tar"),
        (["1.jpg", "2.jpg"], "the archive a.tar"),
    ],
)
def test_what_one_tar_is(tmp_path: Path, names: list[str], described: str):
    (tmp_path / "a.tar").write_bytes(tar_of(names))
    listing = list_images(tmp_path / "a.tar")
    assert listing.described == described
    assert len(listing) == sum(name.endswith(".jpg") for name in names)


def test_webdataset_settings_on_one_tar_of_images(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(["1.jpg", "2.jpg"]))
    listing = list_images(tmp_path / "a.tar", SourceSettings(format="webdataset"))
    assert [source.name for source in listing] == [b"a.tar/1.jpg", b"a.tar/2.jpg"]


@pytest.mark.parametrize("names", [["1.jpg", "1.cls", "1.jpg"], ["1.jpg", "1.cls", "2.jpg", "1.jpg"]])
def test_a_sample_twice(tmp_path: Path, names: list[str]):
    (tmp_path / "a.tar").write_bytes(tar_of(names))
    with pytest.raises(InputError, match=r"1\.jpg is there twice"):
        list_images(tmp_path)


def test_webdataset_behind_a_url(tmp_path: Path, memory: fsspec.AbstractFileSystem):
    for name in ("x-train-0.tar", "x-train-1.tar"):
        (tmp_path / name).write_bytes(tar_of(SAMPLES))
        memory.pipe(f"/set/{name}", tar_of(SAMPLES))
    local, remote = list_images(tmp_path), list_images("memory://set")
    assert remote.sha256 == local.sha256
    assert read_all(remote) == read_all(local)


def test_training_and_validation_shards_are_not_mixed(tmp_path: Path):
    for name in ("in-train-00.tar", "in-train-01.tar", "in-validation-00.tar"):
        (tmp_path / name).write_bytes(tar_of([f"{name}.0.jpg", f"{name}.0.cls"][:1]))
    with pytest.raises(InputError, match=r"files of train, val in one; give a pattern, like .*/\*train\*\.tar"):
        list_images(tmp_path)
    settings = SourceSettings(image="tar.0.jpg")
    assert len(list_images(tmp_path / "*train*.tar", settings)) == 2
    assert len(list_images(tmp_path / "*.tar", settings)) == 3
    with pytest.raises(InputError, match="no such file or folder"):
        list_images(tmp_path / "*test*.tar")
