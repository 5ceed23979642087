from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from pipeline.artifacts.manifest import (
    IndexEntry,
    Manifest,
    QuarantineEntry,
    ShardIndex,
    ShardStats,
    encode_quarantine,
    read_quarantine,
)
from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError

SHARD = {"name": "r2o-000000.tar", "samples": 3, "bytes": 10240, "sha256": "ab" * 32, "index_sha256": "cd" * 32}


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        settings={"seed": 0},
        versions={"numpy": "2"},
        fingerprint="ef" * 32,
        listed=4,
        stored=3,
        quarantined=1,
        ignored=0,
        superpixel_size=224,
        max_superpixels=100,
        classes=("é",),
        quarantine_sha256="00" * 32,
        shards=(ShardStats(**SHARD),),
    )


def test_manifest_comes_back(manifest, tmp_path):
    (tmp_path / "manifest.json").write_bytes(manifest.encode())
    assert Manifest.read(tmp_path) == manifest
    assert json.loads(manifest.encode())["format_version"] == 2
    assert manifest.shards[0].index_name == "r2o-000000.index"


def test_no_folder_and_no_manifest_are_told_apart(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        Manifest.read(tmp_path / "nowhere")
    (tmp_path / "r2o-000000.tar").touch()
    with pytest.raises(InputError, match=r"no manifest\.json, so these are no finished shards"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format_version": 3}, "format version 3, but this r2o reads 1 and 2"),
        ({"format_version": True}, "format version True"),
        ({"format_version": 1.0}, r"format version 1\.0"),
        ({"format_version": None}, "format version None"),
        ({"stored": 5}, "stored is not the sum over its shards"),
        ({"listed": "many"}, "is damaged"),
        ({"surplus": 1}, "is damaged"),
        ({"ignored": -1}, r"is damaged \(ignored: "),
        ({"max_superpixels": 10**30}, r"is damaged \(max_superpixels: "),
        ({"superpixel_size": 10**9}, r"is damaged \(superpixel_size: "),
        ({"shards": [{**SHARD, "samples": -5}]}, r"is damaged \(shards\.0\.samples: "),
        ({"shards": [{**SHARD, "bytes": 10**30}]}, r"is damaged \(shards\.0\.bytes: "),
        ({"shards": [SHARD, SHARD], "stored": 6}, "it names a shard twice"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_line(manifest, tmp_path, change, complaint):
    (tmp_path / "manifest.json").write_text(json.dumps(sealed({**json.loads(manifest.encode()), **change})))
    with pytest.raises(InputError, match=complaint) as caught:
        Manifest.read(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"listed": 5}, {"classes": ["f"]}, {"settings": {"seed": 1}}, {"over_limit": True}])
def test_a_change_that_only_the_checksum_tells_is_told(manifest, tmp_path, change):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(manifest.encode()), **change}))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(its checksum does not fit"):
        Manifest.read(tmp_path)
    path.write_text(
        json.dumps({name: value for name, value in json.loads(manifest.encode()).items() if name != "checksum"})
    )
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(its checksum is missing"):
        Manifest.read(tmp_path)
    former = manifest.model_copy(update={"format_version": 1})
    path.write_bytes(former.encode())
    assert "checksum" not in json.loads(former.encode())
    assert Manifest.read(tmp_path) == former


@pytest.mark.parametrize("found", [None, 0, "x", 1.5, True])
def test_settings_that_do_not_say_how_many_images_a_shard_has(manifest, found):
    made = manifest.model_copy(update={"settings": {"images_per_shard": found}})
    with pytest.raises(InputError, match=r"settings\.images_per_shard is"):
        _ = made.images_per_shard


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 100_000, '{"format_version": ' + "1" * 5000 + "}"])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_index_comes_back_line_by_line(tmp_path):
    entries = tuple(IndexEntry(key=f"{n:09d}", members={"jpg": (512, n), "json": (9, 4)}) for n in range(3))
    data = ShardIndex(entries=entries).encode()
    assert data.splitlines()[1] == b'{"key":"000000001","members":{"jpg":[512,1],"json":[9,4]}}'
    (tmp_path / "r2o-000000.index").write_bytes(data)
    assert ShardIndex.read(tmp_path, ShardStats(**SHARD)).entries == entries
    assert ShardIndex.decode(b"").entries == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "\x1b[2J\nr2o: all is well"},
        {"key": "../0"},
        {"members": {"jpg": [-5, 10]}},
        {"members": {"jpg": [512, -1]}},
        {"members": {"jpg": [512, 10**30]}},
        {"members": {"jpg": [10_000, 241]}},
    ],
)
def test_an_index_that_is_not_of_its_shard_is_named(tmp_path, wrong):
    lines = [{"key": f"{n:09d}", "members": {"jpg": [10_000, 240]}} for n in range(3)]
    path = tmp_path / "r2o-000000.index"
    stats = ShardStats(**SHARD)

    def write(*entries):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))

    write(*lines)
    assert len(ShardIndex.read(tmp_path, stats).entries) == 3
    for found in ([], lines[:2], [*lines[:2], {**lines[2], **wrong}]):
        write(*found)
        with pytest.raises(InputError, match=r"r2o-000000\.index: not the index of its shard"):
            ShardIndex.read(tmp_path, stats)
    path.unlink()
    with pytest.raises(InputError, match=r"r2o-000000\.index: No such file"):
        ShardIndex.read(tmp_path, stats)


def test_quarantine_is_sorted_and_comes_back(tmp_path):
    entries = [QuarantineEntry(source=name, reason="empty file") for name in ("é.jpg", "b\n.jpg", "a.jpg")]
    data = encode_quarantine(entries)
    assert len(data.splitlines()) == 3
    (tmp_path / "quarantine.jsonl").write_bytes(data)
    assert [entry.source for entry in read_quarantine(tmp_path)] == ["a.jpg", "b\n.jpg", "é.jpg"]
    assert encode_quarantine([]) == b""


def test_records_are_frozen_and_closed(manifest):
    with pytest.raises(ValidationError, match="frozen"):
        manifest.stored = 4
    with pytest.raises(ValidationError, match="extra"):
        QuarantineEntry(source="a", reason="b", when="c")


PATHS = [
    "../r2o-000000.tar",
    "/etc/r2o-000000.tar",
    "a/r2o-000000.tar",
    "..",
    "",
    ".",
    "r2o-000000.tar\n",
    "r2o-000000.tar/",
]
PATHS += ["\0-000000.tar", ".r2o-000000.tar", "r2o-000000.TAR", "r2o.tar", "r2o-١٢٣٤٥٦.tar", "x" * 300 + "-000000.tar"]


@pytest.mark.parametrize("name", PATHS)
def test_a_shard_s_name_is_never_a_path(manifest, tmp_path, name):
    content = json.loads(manifest.encode())
    content["shards"][0]["name"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(shards\.0\.name: ") as caught:
        Manifest.read(tmp_path)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["../../victim", "/victim", "", "f" * 63, "F" * 64, "f" * 64 + "\n", "f" * 65, None, 5]
)
@pytest.mark.parametrize("where", ["fingerprint", "quarantine_sha256", "sha256", "index_sha256"])
def test_fingerprints_and_digests_are_64_hex_digits(manifest, tmp_path, where, value):
    content = json.loads(manifest.encode())
    (content if where in content else content["shards"][0])[where] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"damaged \((shards\.0\.)?{where}: "):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x.y", "x\n"])
def test_a_map_s_name_is_part_of_a_member_s_name(manifest, tmp_path, name):
    content = {**json.loads(manifest.encode()), "maps": {name: {"size": 8, "max_superpixels": 4}}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged"):
        Manifest.read(tmp_path)
