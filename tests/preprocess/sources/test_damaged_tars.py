"""Tars that are damaged, or that we do not read."""

from __future__ import annotations

import gzip
import lzma
import random
import tarfile
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from tests.preprocess.sources.made_tars import kind_of, raw_tar, tar_of


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
