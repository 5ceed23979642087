from __future__ import annotations

import gc
import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.artifacts.manifest import ShardIndex
from pipeline.artifacts.sample import decode_jpeg, decode_label_map
from pipeline.foundation.files import sha256_of
from pipeline.foundation.folders import folder_at
from preprocess.config import FastSlicSettings, FelzenszwalbSettings, ShardSettings
from preprocess.shards import make_one
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.superpixels import label_maps_of, native_map
from preprocess.shards.tar_writer import tar_header
from preprocess.sources.list_images import list_images


def write(root: Path, files: dict[bytes, bytes]) -> None:
    for name, data in files.items():
        path = Path(os.fsdecode(os.path.join(os.fsencode(root), name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def shard_of(root: Path, folder: Path, **settings: object):
    folder.mkdir(exist_ok=True)
    plan = Plan(list_images(root), ShardSettings(**settings))
    assert len(plan) == 1
    return plan, make_shard(plan.task(0), folder=folder_at(folder))


def samples_of(tar_path: Path) -> dict[str, dict[str, bytes]]:
    """Read by plain tarfile, in order."""
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tar_path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            samples.setdefault(key, {})[name] = tar.extractfile(member).read()
    return samples


@pytest.fixture
def photos(tmp_path, make_folder):
    return make_folder(tmp_path / "images", 7, classes=("cat", "dog"))


@pytest.mark.parametrize("version", [1, 2])
def test_round_trip(photos, tmp_path, version):
    plan = Plan(list_images(photos), ShardSettings())
    (tmp_path / "shards").mkdir()
    result = make_shard(replace(plan.task(0), format_version=version), folder=folder_at(tmp_path / "shards"))
    samples = samples_of(tmp_path / "shards" / "r2o-000000.tar")
    assert list(samples) == [f"{n:09d}" for n in range(7)]
    for (key, members), path in zip(samples.items(), [source.name for source in plan.task(0).sources], strict=True):
        assert list(members) == ["jpg", "superpixels.png", "json"], key
        source = photos / os.fsdecode(path)
        assert members["jpg"] == source.read_bytes()
        pixels = simplejpeg.decode_jpeg(members["jpg"], "RGBX")
        png = Image.open(io.BytesIO(members["superpixels.png"]))
        assert (png.mode, png.size) == ("L", (224, 224))
        expected = label_maps_of(pixels, {"": plan.settings.superpixels})[""]
        np.testing.assert_array_equal(np.asarray(png), expected)
        read = {"source_bytes": source.stat().st_size, "source_sha256": sha256_of(source)}
        assert json.loads(members["json"]) == (read if version == 2 else {}) | {
            "source": path.decode(),
            "width": pixels.shape[1],
            "height": pixels.shape[0],
            "num_superpixels": len(np.unique(expected)),
            "class_name": source.parent.name,
        }
    assert result.max_superpixels[""] == max(json.loads(m["json"])["num_superpixels"] for m in samples.values())


def test_a_map_of_the_native_size_changes_no_other_member(tmp_path, picture, encoded):
    """SLIC's map is of the image that the decoder reduced, whatever else is made of the whole one."""
    pytest.importorskip("skimage.segmentation")
    images, of = tmp_path / "images", {}
    write(images, {b"a.jpg": encoded(picture(3, 500, 400))})
    for name, maps in (("without", {}), ("with", {"fh": FelzenszwalbSettings(segmented_at="native", size=300)})):
        (tmp_path / name).mkdir()
        plan = Plan(list_images(images), ShardSettings(superpixels=FastSlicSettings(size=64), maps=maps))
        make_shard(plan.task(0), folder=folder_at(tmp_path / name))
        (of[name],) = samples_of(tmp_path / name / "r2o-000000.tar").values()
    made = decode_label_map(of["with"].pop("superpixels-fh.png"))
    assert of["with"] == of["without"]
    whole = decode_jpeg(of["with"]["jpg"])
    assert whole.shape == (400, 500, 3)
    np.testing.assert_array_equal(made, native_map(whole, settings=plan.settings.maps["fh"]))


def test_index_leads_to_every_member(photos, tmp_path):
    _, result = shard_of(photos, tmp_path)
    tar = tmp_path / "r2o-000000.tar"
    data = tar.read_bytes()
    samples = samples_of(tar)
    index = ShardIndex.decode((tmp_path / "r2o-000000.index").read_bytes())
    assert [entry.key for entry in index.entries] == list(samples)
    for entry in index.entries:
        assert {n: data[o : o + s] for n, (o, s) in entry.members.items()} == samples[entry.key]
    assert result.stats.samples == 7
    assert result.stats.bytes == len(data)
    assert result.stats.sha256 == sha256_of(tar)
    assert result.stats.index_sha256 == sha256_of(tmp_path / "r2o-000000.index")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset 1.0 never closes the tar
def test_plain_webdataset_reads_it(photos, tmp_path):
    import webdataset as wds

    shard_of(photos, tmp_path)
    tar = tmp_path / "r2o-000000.tar"
    read = list(wds.WebDataset(str(tar), shardshuffle=False))
    samples = samples_of(tar)
    assert [sample["__key__"] for sample in read] == list(samples)
    for sample in read:
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        assert members == samples[sample["__key__"]]
    gc.collect()


def test_member_metadata_is_constant(photos, tmp_path):
    shard_of(photos, tmp_path)
    with tarfile.open(tmp_path / "r2o-000000.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in tar}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_odd_images_are_stored_or_quarantined(tmp_path, picture, encoded):
    good = encoded(picture(0))
    files = {
        b"cmyk.jpg": encoded(picture(1), mode="CMYK"),
        b"grey.jpg": encoded(picture(2), mode="L"),
        b"a png.JPEG": encoded(picture(3), "PNG"),
        b"a jpeg.png": good,
        b"palette.gif": encoded(picture(4), "GIF"),
        b"dot.in.name.jpg": good,
        b"one/same.jpg": good,
        b"two/same.jpg": good,
        "café.jpg".encode(): good,
        b"new\nline.jpg": good,
        b"-dash.jpg": good,
        b"100%.jpg": good,
        b"raw\xff.jpg": good,
        b"pixel.bmp": encoded(np.zeros((1, 1, 3), np.uint8), "BMP"),
        b"line.jpg": encoded(np.full((5000, 1, 3), 99, np.uint8)),
        b"palette.png": encoded(picture(6), "PNG", mode="P"),
        b"alpha.png": encoded(picture(7), "PNG", mode="RGBA"),
        b"16 bit.png": encoded(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16, "PNG", mode="I;16"),
        b"turned.jpg": encoded(
            picture(8), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        ),
    }
    bad = {
        b"truncated.jpg": good[: len(good) // 2],
        b"truncated\xfe.png": encoded(picture(5), "PNG")[:3000],
        b"zero.jpg": b"",
        b"text.jpg": b"not an image at all",
        b"huge.jpg": encoded(picture(9, 200, 100)),
    }
    root = tmp_path / "images"
    write(root, {**files, **bad})
    (root / "gone.jpg").symlink_to("nowhere")
    plan, result = shard_of(root, tmp_path / "shards", max_pixels=19_999)
    samples = samples_of(tmp_path / "shards" / "r2o-000000.tar")
    metas = [json.loads(members["json"]) for members in samples.values()]
    assert sorted(unquote_to_bytes(meta["source"]) for meta in metas) == sorted(files)
    assert sorted(unquote_to_bytes(entry.source) for entry in result.quarantine) == sorted([*bad, b"gone.jpg"])
    assert plan.total == result.stats.samples + len(result.quarantine)
    for members in samples.values():
        meta = json.loads(members["json"])
        height, width, colour, _ = simplejpeg.decode_jpeg_header(members["jpg"])
        assert (meta["width"], meta["height"]) == (width, height)
        assert colour in ("YCbCr", "RGB", "Gray")
        if unquote_to_bytes(meta["source"]) in files and "changed" not in meta:
            assert members["jpg"] == files[unquote_to_bytes(meta["source"])]
    changed = {meta["source"]: meta.get("changed") for meta in metas}
    assert changed["cmyk.jpg"] == ["colour CMYK"]
    assert changed["a png.JPEG"] == ["format PNG"]
    assert changed["a jpeg.png"] is None
    assert changed["palette.png"] == ["format PNG", "mode P"]
    assert changed["alpha.png"] == ["format PNG", "mode RGBA"]
    assert changed["16 bit.png"] == ["format PNG", "mode I;16"]
    assert changed["turned.jpg"] == ["orientation 6"]
    sizes = {meta["source"]: (meta["width"], meta["height"]) for meta in metas}
    assert (sizes["line.jpg"], sizes["pixel.bmp"], sizes["turned.jpg"]) == ((1, 5000), (1, 1), (72, 96))
    reasons = {entry.source: entry.reason for entry in result.quarantine}
    assert reasons["zero.jpg"] == "empty file"
    assert reasons["huge.jpg"] == "200×100 pixels are more than 19,999"
    assert reasons["gone.jpg"] == "cannot be read: No such file or directory"
    assert "truncated%FE.png" in reasons


def test_a_shard_without_a_sample_is_an_empty_tar(tmp_path):
    root = tmp_path / "images"
    write(root, {b"a.jpg": b"no", b"b.jpg": b""})
    _, result = shard_of(root, tmp_path / "shards")
    assert samples_of(tmp_path / "shards" / "r2o-000000.tar") == {}
    assert ShardIndex.decode((tmp_path / "shards" / "r2o-000000.index").read_bytes()).entries == ()
    assert (result.stats.samples, result.max_superpixels, len(result.quarantine)) == (0, {"": 0}, 2)


def test_the_same_bytes_again_and_in_another_place(photos, tmp_path):
    _, first = shard_of(photos, tmp_path / "a")
    photos.rename(tmp_path / "moved")
    _, second = shard_of(tmp_path / "moved", tmp_path / "b")
    assert first.stats == second.stats


def test_a_failure_leaves_nothing_behind(photos, tmp_path, monkeypatch):
    calls = []

    def fail_late(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        return label_maps_of(*args, **kwargs)

    monkeypatch.setattr(make_one, "label_maps_of", fail_late)
    with pytest.raises(OSError, match="No space left"):
        shard_of(photos, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "size"), [("0.jpg", 0), ("000000000.superpixels.png", 2**31), ("é" * 50, 8 * 2**30 - 1)]
)
def test_a_header_is_tarfiles_own(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    assert tar_header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)
