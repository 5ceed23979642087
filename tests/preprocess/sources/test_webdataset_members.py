"""Whatever members a sample of WebDataset has, none of them is lost, and the set that is made of it can be used."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import webdataset

from pipeline.artifacts.manifest import Manifest
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from preprocess.verify import check_shard
from train.config.data import DataSettings
from train.data.shards.open import open_shards

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset never closes the tar


@pytest.fixture
def jpegs(tmp_path: Path, make_folder: Callable[..., Path]) -> list[bytes]:
    return [path.read_bytes() for path in sorted(make_folder(tmp_path / "jpegs", 3).iterdir())]


def write_tar(path: Path, members: list[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir()
    with tarfile.open(path, "w", format=form, errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.parent


def second_format(source: Path, shards: Path) -> dict[str, dict[str, bytes]]:
    """Shards of format 2 from all of a source; their samples, once verify, train and webdataset have read them."""
    job = ShardJob(shards, Plan(list_images(source), ShardSettings(max_bad_fraction=1.0)))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(replace(task, format_version=2), folder=job.folder))
    manifest = job.finish()
    assert check_shard(str(shards), manifest, 0, True) == []
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shards / "r2o-000000.tar") as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            samples.setdefault(key, {})[name] = tar.extractfile(member).read()
    reader = open_shards(str(shards), Manifest.read(shards), DataSettings())
    assert [reader.read(number, "").key for number in range(manifest.stored)] == list(samples)
    for theirs in webdataset.WebDataset(str(shards / "r2o-000000.tar"), shardshuffle=False):
        ours = samples[theirs["__key__"]]
        assert {n: d for n, d in theirs.items() if n[0] != "_"} == {n.lower(): d for n, d in ours.items()}
    gc.collect()
    return samples


def test_every_pass_over_an_own_set_keeps_what_the_former_had(jpegs, tmp_path):
    captions = [json.dumps({"caption": f"number {number}"}).encode() for number in range(3)]
    members = [
        (f"{n:03d}.{end}", data)
        for n, jpeg in enumerate(jpegs)
        for end, data in (("jpg", jpeg), ("json", captions[n]), ("cls", b"7"))
    ]
    passes = [second_format(write_tar(tmp_path / "wds" / "a.tar", members), tmp_path / "0")]
    passes += [second_format(tmp_path / "0", tmp_path / "1")]
    passes += [second_format(tmp_path / "1", tmp_path / "2")]
    first, second, third = ({sample["jpg"]: sample for sample in one.values()} for one in passes)
    assert len(first) == len(second) == len(third) == 3
    for number, jpeg in enumerate(jpegs):
        one, two, three = first[jpeg], second[jpeg], third[jpeg]
        assert {n: d for n, d in one.items() if n not in ("jpg", "superpixels.png", "json")} == {
            "source.json": captions[number],
            "cls": b"7",
        }
        assert {n: d for n, d in two.items() if n not in ("jpg", "superpixels.png", "json")} == {
            "source.superpixels.png": one["superpixels.png"],
            "source.json": one["json"],
            "source.source.json": captions[number],
            "cls": b"7",
        }
        assert {n: d for n, d in three.items() if n not in ("jpg", "superpixels.png", "json")} == {
            "source.superpixels.png": two["superpixels.png"],
            "source.json": two["json"],
            "source.source.superpixels.png": one["superpixels.png"],
            "source.source.json": one["json"],
            "source.source.source.json": captions[number],
            "cls": b"7",
        }


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    ("others", "kept"),
    [
        (["json", "source.json"], ["source.json", "source.source.json"]),
        (["t\udcff", "cls"], ["t%FF", "cls"]),
        (["t\udcff", "t%FF"], ["t%FF", "source.t%FF"]),
        (["JPG", "JpG"], ["source.JPG", "source.source.JpG"]),
        (["txt", "TXT"], ["txt", "source.TXT"]),
        (["a\x01b", "a\nb"], ["a%01b", "a%0Ab"]),
    ],
)
def test_members_that_collide_or_cannot_be_named_are_kept(jpegs, tmp_path, others, kept, form):
    data = {name: b"%d" % number for number, name in enumerate(others)}
    members = [("1.jpg", jpegs[0]), *((f"1.{name}", body) for name, body in data.items()), ("2.jpg", jpegs[1])]
    samples = second_format(write_tar(tmp_path / "wds" / "a.tar", members, form=form), tmp_path / "made")
    (found,) = (sample for sample in samples.values() if sample["jpg"] == jpegs[0])
    assert list(found) == ["jpg", "superpixels.png", "json", *kept]
    assert [found[name] for name in kept] == [data[name] for name in others]


def test_a_name_that_grows_too_long_is_quarantined_with_its_reason(jpegs, tmp_path):
    long = "x" * 76
    members = [("1.jpg", jpegs[0]), (f"1.{long}", b"1"), (f"1.{long.upper()}", b"2"), ("2.jpg", jpegs[1])]
    place = write_tar(tmp_path / "wds" / "a.tar", members)
    samples = second_format(place, tmp_path / "made")
    assert [sample["jpg"] for sample in samples.values()] == [jpegs[1]]
    told = json.loads((tmp_path / "made" / "quarantine.jsonl").read_text())
    assert told["reason"] == f"member 'source.{long.upper()}': the name is too long for a tar"
