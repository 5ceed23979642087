"""Tars of images, and tars of tars."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings, SourceSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from preprocess.sources.tars import members_of
from tests.preprocess.sources.made_tars import body, kind_of, raw_tar, read_all, tar_of

LONG = "deep/" * 60 + "x" * 90 + ".jpg"
ODD = ["a.jpg", "./b/c.JPEG", "/d/e.png", "caf\xe9.jpg", "raw\udcff.jpg", "new\nline.jpg", "f" * 101 + ".gif", LONG]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_tarfiles(tmp_path: Path, format: int):
    names = [*ODD[: 6 if format == tarfile.USTAR_FORMAT else None], "notes.txt", "p" * 99 + "/q.jpg"]
    (tmp_path / "a.tar").write_bytes(tar_of(names, format=format))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar]
    found = list(members_of(folder_at(tmp_path), "a.tar"))
    assert [(m.name.decode(errors="surrogateescape"), m.offset, m.size) for m in found] == expected
    assert all(member.is_file for member in found)


def test_links_and_devices_are_no_files_and_folders_nothing(tmp_path: Path):
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
    entries = [kind_of(f"{kind.decode()}.jpg", kind, "x" * 200) for kind in kinds]
    data = raw_tar(kind_of("folder.jpg", tarfile.DIRTYPE), *entries, (tarfile.TarInfo("last.jpg"), b"abc"))
    (tmp_path / "a.tar").write_bytes(data)
    found = [(m.name, m.is_file) for m in members_of(folder_at(tmp_path), "a.tar")]
    assert found == [(f"{kind.decode()}.jpg".encode(), False) for kind in kinds] + [(b"last.jpg", True)]
    listing = list_images(tmp_path / "a.tar")
    assert [(source.name, source.size) for source in listing] == [(b"last.jpg", 3)]
    assert listing.ignored == len(kinds)


def test_a_size_above_eight_gigabytes(tmp_path: Path):
    info = tarfile.TarInfo("big.bin")
    info.size = size = 9 * 2**30 + 5
    padded = -(-size // 512) * 512
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = info.tobuf(format)
        with (tmp_path / "a.tar").open("wb") as file:
            file.write(header)
            file.seek(len(header) + padded)
            file.write(tar_of(["after.jpg"]))
        listing = list_images(tmp_path / "a.tar", SourceSettings(format="tar"))
        assert read_all(listing) == [(b"after.jpg", len(body("after.jpg")), None, body("after.jpg"))]
        assert listing[0].offset == len(header) + padded + 512


def test_images_of_one_tar(tmp_path: Path):
    (tmp_path / "set.tar").write_bytes(tar_of([*ODD, "notes.txt", "._a.jpg", "../up.jpg", ".git/x.png"]))
    listing = list_images(tmp_path / "set.tar")
    plain = [name.removeprefix("./").removeprefix("/") for name in ODD]
    expected = [
        (p.encode(errors="surrogateescape"), len(body(n)), None, body(n)) for p, n in zip(plain, ODD, strict=True)
    ]
    assert read_all(listing) == expected
    assert (listing.ignored, listing.described, listing.kind) == (4, "the archive set.tar", "ranges")
    assert listing.root == str(tmp_path)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Three class folders, and beside them `outer.tar` of a tar for each class."""
    outer = []
    for number, name in enumerate(("n01440764", "n01443537", "n01484850")):
        images = [f"{name}_{i}.JPEG" for i in range(4 + number)]
        (tmp_path / "train" / name).mkdir(parents=True)
        for image in images:
            (tmp_path / "train" / name / image).write_bytes(body(image))
        outer.append((tarfile.TarInfo(f"{name}.tar"), tar_of([*images, "._x.JPEG"], format=tarfile.GNU_FORMAT)))
    (tmp_path / "outer.tar").write_bytes(raw_tar(*outer))
    return tmp_path


def test_a_tar_of_tars_is_the_unpacked_folders(imagenet: Path):
    tar, folders = list_images(imagenet / "outer.tar"), list_images(imagenet / "train")
    assert len(tar) == 15
    assert read_all(tar) == read_all(folders)
    assert tar.classes == folders.classes == ("n01440764", "n01443537", "n01484850")
    assert tar.ignored == 3
    assert tar.described == "the archive outer.tar of 3 tars"


def test_a_folder_of_class_tars_is_the_unpacked_folders(imagenet: Path):
    with tarfile.open(imagenet / "outer.tar") as tar:
        tar.extractall(imagenet / "tars", filter="data")
    listing = list_images(imagenet / "tars", SourceSettings(format="tar"))
    assert read_all(listing) == read_all(list_images(imagenet / "train"))
    assert listing.described == "3 tars"


def test_shards_of_a_tar_of_tars_are_those_of_the_folders(tmp_path: Path, make_folder: Callable[..., Path]):
    folders = make_folder(tmp_path / "train", 6, classes=("cat", "dog"))
    with tarfile.open(tmp_path / "train.tar", "w") as outer:
        for folder in sorted(folders.iterdir()):
            with tarfile.open(tmp_path / f"{folder.name}.tar", "w") as tar:
                for image in sorted(folder.iterdir()):
                    tar.add(image, arcname=f"./{image.name}")
            outer.add(tmp_path / f"{folder.name}.tar", arcname=f"{folder.name}.tar")
    made = []
    for name in ("train", "train.tar"):
        plan = Plan(list_images(tmp_path / name), ShardSettings())
        (tmp_path / f"shards of {name}").mkdir()
        result = make_shard(plan.task(0), folder=folder_at(tmp_path / f"shards of {name}"))
        made.append((result.stats.samples, result.stats.sha256, result.stats.index_sha256))
    assert made[0] == made[1]
    assert made[0][0] == 6


def test_images_beside_the_inner_tars(tmp_path: Path):
    inner = tarfile.TarInfo("set/b.TAR"), tar_of(["1.jpg", "deeper.tar"])
    (tmp_path / "a.tar").write_bytes(
        raw_tar((tarfile.TarInfo("0.jpg"), b"zero"), inner, (tarfile.TarInfo("2.jpg"), b"2"))
    )
    listing = list_images(tmp_path / "a.tar")
    assert [(name, data) for name, _, _, data in read_all(listing)] == [
        (b"0.jpg", b"zero"),
        (b"set/b/1.jpg", body("1.jpg")),
        (b"2.jpg", b"2"),
    ]
    assert listing.ignored == 1


def test_a_tar_behind_a_url(imagenet: Path, memory: fsspec.AbstractFileSystem):
    memory.pipe("/bucket/outer.tar", (imagenet / "outer.tar").read_bytes())
    listing = list_images("memory://bucket/outer.tar")
    assert listing.root == "memory://bucket"
    assert read_all(listing) == read_all(list_images(imagenet / "outer.tar"))
    assert listing.sha256 == list_images(imagenet / "outer.tar").sha256


def test_tars_one_after_the_other(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(["a.jpg"]) + tar_of(["b.jpg"]) + tar_of(["c.jpg"]))
    assert [name for name, *_ in read_all(list_images(tmp_path / "a.tar"))] == [b"a.jpg", b"b.jpg", b"c.jpg"]


def test_a_name_twice(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(["a.jpg", "b.jpg", "./a.jpg"]))
    with pytest.raises(InputError, match=r"a\.tar: a\.jpg is there twice"):
        list_images(tmp_path / "a.tar")


def test_nothing_in_a_tar(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(tar_of(["a.txt", "b.txt"]))
    with pytest.raises(InputError, match=r"no image in the archive a\.tar \(2 other entries\)"):
        list_images(tmp_path / "a.tar")
