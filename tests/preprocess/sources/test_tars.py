from __future__ import annotations

import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings, SourceSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Listing
from preprocess.sources.reader import Reader
from preprocess.sources.tars import members_of

LONG = "deep/" * 60 + "x" * 90 + ".jpg"
ODD = ["a.jpg", "./b/c.JPEG", "/d/e.png", "caf\xe9.jpg", "raw\udcff.jpg", "new\nline.jpg", "f" * 101 + ".gif", LONG]


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


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


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


@pytest.mark.parametrize("keep", [511, 512, 600, 1024 + 512, 2048])
def test_cut_off(tmp_path: Path, keep: int):
    info = tarfile.TarInfo("a.jpg"), bytes(range(256)) * 4
    data = raw_tar(info, (tarfile.TarInfo("b.jpg"), b"b"))
    (tmp_path / "a.tar").write_bytes(data[:keep])
    with pytest.raises(InputError, match=r"a\.tar: cut off at byte \d+.*fetch it again"):
        list_images(tmp_path / "a.tar", SourceSettings(format="tar"))


def test_an_inner_tar_that_is_cut_off_is_named(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(raw_tar((tarfile.TarInfo("in.tar"), tar_of(["a.jpg"])[:512])))
    with pytest.raises(InputError, match=r"a\.tar: in\.tar: cut off"):
        list_images(tmp_path / "a.tar")


def test_a_hole_that_a_download_left(tmp_path: Path):
    names = [f"{number}.jpg" for number in range(2000)]
    data = bytearray(tar_of(names))
    (tmp_path / "end.tar").write_bytes(data[: len(data) // 2 // 512 * 512] + bytes(2**21))
    data[512 * 900 : 512 * 1000] = bytes(512 * 100)
    (tmp_path / "middle.tar").write_bytes(data)
    for name in ("end", "middle"):
        with pytest.raises(InputError, match=rf"{name}\.tar: (nothing but zeros|no tar header|cut off)"):
            list(list_images(tmp_path / f"{name}.tar", SourceSettings(format="tar")))


def test_no_tar(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(random.Random(0).randbytes(4096))
    with pytest.raises(InputError, match=r"a\.tar: no tar header at byte 0; the archive is damaged, or no tar"):
        list_images(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz", "a.tar.xz", "a.tar.zst"])
def test_compressed(tmp_path: Path, name: str):
    compress = lzma.compress if name.endswith("xz") else gzip.compress
    (tmp_path / name).write_bytes(compress(tar_of(["a.jpg"])))
    with pytest.raises(InputError, match=r"compressed.*decompress it first"):
        list_images(tmp_path / name)


def test_sparse_members_are_refused(tmp_path: Path):
    old = raw_tar(kind_of("a.jpg", tarfile.GNUTYPE_SPARSE))
    info = tarfile.TarInfo("GNUSparseFile.0/a.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    for data in (old, raw_tar((info, b"x"), format=tarfile.PAX_FORMAT)):
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(InputError, match="repack it as plain tar"):
            list_images(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "records", [b"0 path=x\n", b"-3 path=x\n", b"99 path=x\n", b"x\n", b"9 size=-1\n", b"8 novalue"]
)
def test_a_damaged_pax_header(tmp_path: Path, records: bytes):
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    (tmp_path / "a.tar").write_bytes(raw_tar((info, records), (tarfile.TarInfo("a.jpg"), b"x")))
    with pytest.raises(InputError, match="a pax header at byte 0 that is damaged"):
        list_images(tmp_path / "a.tar")


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
