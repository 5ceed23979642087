"""Real damage to real shards: exactly what is damaged is named, and made again to the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.artifacts.sample import SampleMeta
from pipeline.artifacts.seal import sealed
from pipeline.foundation.exit_codes import EXIT_DAMAGED
from pipeline.foundation.folders import folder_at
from preprocess import verify


def faults(folder: Path, *, deep: bool = False) -> tuple[list[str], dict[str, list[str]]]:
    """As `verify.check` says, without its processes."""
    manifest = Manifest.read(folder)
    found = {s.name: verify.check_shard(str(folder), manifest, n, deep) for n, s in enumerate(manifest.shards)}
    return verify._about_set(folder_at(folder), manifest), {name: fault for name, fault in found.items() if fault}


def replaced(folder: Path, shard: int, member: str, data: bytes) -> str:
    """Put `data` where the first sample of a shard has `member`, with hashes that fit; the sample's key."""
    manifest = Manifest.read(folder)
    stats = manifest.shards[shard]
    with tarfile.open(folder / stats.name) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
    key = next(iter(members)).partition(".")[0]
    members[f"{key}.{member}"] = data
    entries: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(folder / stats.name, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            entries.setdefault(name.partition(".")[0], {})[name.partition(".")[2]] = (tar.offset + 512, len(body))
            tar.addfile(info, io.BytesIO(body))
    index = ShardIndex(entries=tuple({"key": k, "members": m} for k, m in entries.items())).encode()
    (folder / stats.index_name).write_bytes(index)
    tar_bytes = (folder / stats.name).read_bytes()
    new = stats.model_copy(
        update={
            "bytes": len(tar_bytes),
            "sha256": hashlib.sha256(tar_bytes).hexdigest(),
            "index_sha256": hashlib.sha256(index).hexdigest(),
        }
    )
    others = [new if s is stats else s for s in manifest.shards]
    (folder / "manifest.json").write_bytes(manifest.model_copy(update={"shards": tuple(others)}).encode())
    return key


def png(label_map: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(label_map.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.processes
def test_whole_shards_are_whole(shards, capsys):
    assert faults(shards, deep=True) == ([], {})
    assert verify.main(["--shards", str(shards), "--workers", "2", "--deep"]) == 0
    assert capsys.readouterr().out == f"{shards}: 3 shards, 11 samples: whole\n"


@pytest.mark.parametrize(
    ("member", "data", "fault"),
    [
        ("superpixels.png", png(np.zeros((100, 100))), "superpixels.png is not 224 × 224"),
        ("superpixels.png", png(np.arange(224 * 224).reshape(224, 224) % 2 * 5), "superpixels.png has gaps in its ids"),
        ("superpixels.png", png(np.zeros((224, 224))), "superpixels.png has not the number of ids that json says"),
        ("superpixels.png", b"no map", "superpixels.png cannot be decoded"),
        (
            "superpixels-grid.png",
            png(np.arange(224 * 224).reshape(224, 224) % 31),
            "superpixels-grid.png has more than 30 ids",
        ),
        ("json", b"{}", "json cannot be read"),
        ("jpg", b"no image", "jpg cannot be decoded"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(shards, member, data, fault):
    key = replaced(shards, 1, member, data)
    assert faults(shards) == ([], {"r2o-000001.tar": [f"{fault}: sample {key}"]})


def test_an_image_of_another_size_is_named(shards):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3)).save(buffer, "JPEG")
    key = replaced(shards, 0, "jpg", buffer.getvalue())
    assert faults(shards)[1] == {"r2o-000000.tar": [f"jpg has not the size that json says: sample {key}"]}


def test_only_a_deep_look_sees_a_cut_image(shards):
    with tarfile.open(shards / "r2o-000002.tar") as tar:
        first = tar.next()
        jpeg = tar.extractfile(first).read()
        meta = SampleMeta.decode(tar.extractfile(first.name.replace("jpg", "json")).read())
    # What storing changed has no hash of its own in json.
    replaced(shards, 2, "json", replace(meta, changed=("format PNG",)).encode())
    key = replaced(shards, 2, "jpg", jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2))
    assert faults(shards) == ([], {})
    assert faults(shards, deep=True)[1] == {"r2o-000002.tar": [f"jpg cannot be decoded: sample {key}"]}


def test_a_flipped_byte_is_found_by_the_checksum_and_its_sample_named(shards):
    entry = ShardIndex.decode((shards / "r2o-000001.index").read_bytes()).entries[2]
    offset, size = entry.members["superpixels.png"]
    data = bytearray((shards / "r2o-000001.tar").read_bytes())
    data[offset + size // 2] ^= 0xFF
    (shards / "r2o-000001.tar").write_bytes(data)
    assert faults(shards)[1] == {
        "r2o-000001.tar": [
            "sha256 differs from the manifest's",
            f"superpixels.png cannot be decoded: sample {entry.key}",
        ]
    }


def test_missing_cut_and_foreign_files_are_named(shards):
    (shards / "r2o-000000.index").unlink()
    tar = shards / "r2o-000001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[: size // 2])
    (shards / "r2o-000009.tar").touch()
    (shards / "quarantine.jsonl").unlink()
    about_set, about_shards = faults(shards)
    assert about_set == ["quarantine.jsonl: missing", "r2o-000009.tar: belongs to nothing"]
    assert about_shards["r2o-000000.tar"] == ["r2o-000000.index is missing"]
    said = about_shards["r2o-000001.tar"]
    assert said[:2] == [f"{size // 2} bytes, not {size}", "its members are not where the index says"]
    assert set(about_shards) == {"r2o-000000.tar", "r2o-000001.tar"}


def test_shards_that_changed_places_are_named(shards):
    for end in ("tar", "index"):
        a, b = (shards / f"r2o-00000{n}.{end}" for n in (0, 1))
        a.rename(shards / "aside")
        b.rename(a)
        (shards / "aside").rename(b)
    assert set(faults(shards)[1]) == {"r2o-000000.tar", "r2o-000001.tar"}


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        (b"no JSON", "r2o-000001.index: no index of a shard"),
        (b"[" * 100_000, "r2o-000001.index: no index of a shard"),
        (b'{"key": "000000004", "members": {"jpg": [-5, 9]}}', "r2o-000001.index: no index of a shard"),
        (b'{"key": "000000004", "members": {"jpg": [512, -9]}}', "r2o-000001.index: no index of a shard"),
        (
            b'{"key": "000000004", "members": {"jpg": [512, 1%b]}}' % (30 * b"0"),
            "r2o-000001.index: no index of a shard",
        ),
        (b'{"key": "000000004", "members": {"jpg": [512, 1%b]}}' % (15 * b"0"), "its members are not where the index"),
    ],
)
def test_an_index_that_the_manifest_knows_and_that_makes_no_sense_is_named(shards, entry, named):
    path = shards / "manifest.json"
    members = json.loads(path.read_text())
    (shards / "r2o-000001.index").write_bytes(entry)
    members["shards"][1]["index_sha256"] = hashlib.sha256(entry).hexdigest()
    path.write_text(json.dumps(sealed(members)))
    about_set, found = faults(shards)
    assert (about_set, list(found)) == ([], ["r2o-000001.tar"])
    assert any(fault.startswith(named) for fault in found["r2o-000001.tar"])


@pytest.mark.parametrize("name", ["quarantine.jsonl", "r2o-000001.tar", "r2o-000001.index"])
def test_what_cannot_be_read_is_one_line(shards, name, capsys, monkeypatch):
    monkeypatch.setattr(verify, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    (shards / name).unlink()
    (shards / name).mkdir()
    assert verify.main([f"--shards={shards}"]) == 2
    line = f"r2o: error: {shards}/{name}: Is a directory; put that right and run the same command again\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize(("key", "value"), [("quality", "much"), ("unknown", 1), ("source", 3), ("prefix", "../x")])
def test_settings_that_make_no_shards_are_one_line(shards, images, key, value, capsys, monkeypatch):
    monkeypatch.setattr(verify, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    path = shards / "manifest.json"
    members = json.loads(path.read_text())
    members["settings"][key] = value
    path.write_text(json.dumps(sealed(members)))
    (shards / "r2o-000001.index").write_bytes(b"")
    for more in ([], ["--repair"]):
        assert verify.main([f"--shards={shards}", f"--images={images}", *more]) == 2
        line = f"r2o: error: {shards}/manifest.json: settings that this r2o cannot make shards with ({key}: "
        assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_an_edited_quarantine_is_named(shards):
    (shards / "quarantine.jsonl").write_text(json.dumps({"source": "x", "reason": "y"}) + "\n")
    assert faults(shards)[0] == ["quarantine.jsonl: sha256 differs from the manifest's"]


def with_index(folder: Path, data: bytes) -> Manifest:
    """Give the first shard another index, with a manifest that fits."""
    manifest = Manifest.read(folder)
    (folder / "r2o-000000.index").write_bytes(data)
    first = manifest.shards[0].model_copy(update={"index_sha256": hashlib.sha256(data).hexdigest()})
    changed = manifest.model_copy(update={"shards": (first, *manifest.shards[1:])})
    (folder / "manifest.json").write_bytes(changed.encode())
    return changed


@pytest.mark.parametrize("wrong", [[-5, 10], [512, -1], [512, 10**30], None])
def test_what_is_no_index_of_a_shard_is_damage(shards, wrong):
    line = {"key": "000000000", "members": {"jpg": wrong}}
    with_index(shards, b"{" if wrong is None else json.dumps(line).encode() + b"\n")
    assert faults(shards) == ([], {"r2o-000000.tar": ["r2o-000000.index: no index of a shard"]})


@pytest.mark.parametrize("place", [(0, 10**12), (10**15, 10)])
def test_a_place_beyond_the_tar_is_damage(shards, place):
    first, *others = ShardIndex.decode((shards / "r2o-000000.index").read_bytes()).entries
    moved = first.model_copy(update={"members": {**first.members, "jpg": place}})
    with_index(shards, ShardIndex(entries=(moved, *others)).encode())
    about_set, about_shards = faults(shards)
    assert (about_set, list(about_shards)) == ([], ["r2o-000000.tar"])
    assert about_shards["r2o-000000.tar"][0] == "its members are not where the index says"


@pytest.mark.processes
@pytest.mark.parametrize("name", [b"a\x1b[2J", b"a\nr2o: whole", b"\xff"])
def test_a_foreign_name_is_shown_on_one_line(shards, capfd, name):
    (shards / os.fsdecode(name)).touch()
    assert verify.main(["--shards", str(shards), "--workers", "1"]) == EXIT_DAMAGED
    shown = {b"a\x1b[2J": "a\\x1b[2J", b"a\nr2o: whole": "a\\nr2o: whole", b"\xff": "\\udcff"}[name]
    assert capfd.readouterr().out == f"{shown}: belongs to nothing\n"


@pytest.mark.processes
def test_a_folder_in_place_of_an_index_is_one_line(shards, capsys):
    (shards / "r2o-000001.index").unlink()
    (shards / "r2o-000001.index").mkdir()
    assert verify.main(["--shards", str(shards), "--workers", "1"]) == 2
    said = f"r2o: error: {shards}/r2o-000001.index: Is a directory; put that right and run the same command again"
    assert capsys.readouterr().err.splitlines()[-1] == said
