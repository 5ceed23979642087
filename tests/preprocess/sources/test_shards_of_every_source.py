"""The same images in every form they come in: the samples are the same, whatever they lay in."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.sample import SampleMeta, decode_label_map
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images


@pytest.fixture
def images(tmp_path, make_folder):
    return make_folder(tmp_path / "images", 6, classes=("cat", "dog"))


def samples(place: object, folder: Path, **settings: object) -> list[dict[str, bytes]]:
    """The samples of one shard of everything at `place`, read by plain tarfile."""
    plan = Plan(list_images(place), ShardSettings.model_validate(settings))
    folder.mkdir()
    result = make_shard(plan.task(0), folder=folder_at(folder))
    assert result.stats.samples == plan.total == 6
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / result.stats.name) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            found.setdefault(key, {})[name] = tar.extractfile(member).read()
    return list(found.values())


def by_image(found: list[dict[str, bytes]]) -> dict[str, str]:
    """SHA-256 of the label map by that of the image."""
    digests = [[hashlib.sha256(s[name]).hexdigest() for name in ("jpg", "superpixels.png")] for s in found]
    return dict(digests)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def tar_of_tars(images: Path, root: Path) -> Path:
    inner = {}
    for folder in sorted(images.iterdir()):
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        inner[f"{folder.name}.tar"] = write_tar(root / f"{folder.name}.inner", files).read_bytes()
    return write_tar(root / "train.tar", inner)


def one_tar(images: Path, root: Path) -> Path:
    files = sorted(images.rglob("*.jpg"))
    return write_tar(root / "one.tar", {str(path.relative_to(images)): path.read_bytes() for path in files})


def list_file(images: Path, root: Path) -> Path:
    (root / "list.txt").write_text("".join(f"images/{path.relative_to(images)}\n" for path in images.rglob("*.jpg")))
    return root / "list.txt"


def bucket(images: Path, root: Path) -> str:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    for path in images.rglob("*.jpg"):
        fs.pipe(f"/train/{path.relative_to(images)}", path.read_bytes())
    return "memory://train"


def parquet(images: Path, root: Path) -> Path:
    arrow, files = pytest.importorskip("pyarrow"), sorted(images.rglob("*.jpg"))
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    table = arrow.table({"image": rows, "label": [int(path.parent.name == "dog") for path in files]})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), root / "a.parquet", row_group_size=2
    )
    return root / "a.parquet"


@pytest.mark.parametrize("form", [tar_of_tars, one_tar, list_file, bucket, parquet])
def test_every_form_gives_the_samples_of_the_folders(images, tmp_path, form: Callable[[Path, Path], object]):
    expected = samples(images, tmp_path / "expected")
    found = samples(form(images, tmp_path), tmp_path / "found")
    assert by_image(found) == by_image(expected)
    classes = {hashlib.sha256(s["jpg"]).hexdigest(): SampleMeta.decode(s["json"]).class_name for s in expected}
    if form is not list_file:  # whose paths begin with the folder of images
        assert {hashlib.sha256(s["jpg"]).hexdigest(): SampleMeta.decode(s["json"]).class_name for s in found} == classes


def test_a_tar_of_tars_is_the_folder_it_was_made_from(images, tmp_path):
    expected = samples(images, tmp_path / "expected")
    assert samples(tar_of_tars(images, tmp_path), tmp_path / "found") == expected


def test_a_bucket_is_the_folder_it_was_copied_from(images, tmp_path):
    expected = samples(images, tmp_path / "expected")
    for ahead in (1, 3, 16):
        assert samples(bucket(images, tmp_path), tmp_path / f"found{ahead}", read_ahead=ahead) == expected


def test_webdataset_samples_gain_superpixels_and_keep_the_rest(images, tmp_path):
    files = sorted(images.rglob("*.jpg"))
    members, kept = {}, {}
    for number, path in enumerate(files):
        rest = {"cls": b"%d" % number, "json": b'{"theirs": 1}', "txt": path.name.encode()}
        members |= {f"{number:04d}.JPEG": path.read_bytes()} | {f"{number:04d}.{name}": d for name, d in rest.items()}
        kept[path.read_bytes()] = rest
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "train-0000.tar", members)
    found = samples(tmp_path / "shards", tmp_path / "found")
    assert by_image(found) == by_image(samples(images, tmp_path / "expected"))
    for sample in found:
        rest = kept[sample["jpg"]]
        assert {n: d for n, d in sample.items() if n not in ("jpg", "superpixels.png", "json")} == {
            "cls": rest["cls"],
            "txt": rest["txt"],
            "source.json": rest["json"],
        }
        assert SampleMeta.decode(sample["json"]).source == f"train-0000.tar/{int(rest['cls']):04d}.JPEG"


def test_our_own_shards_can_gain_other_superpixels(images, tmp_path):
    first = samples(images, tmp_path / "first")
    second = samples(tmp_path / "first", tmp_path / "second", superpixels={"backend": "grid", "rows": 2, "columns": 2})
    assert {s["jpg"] for s in second} == {s["jpg"] for s in first}
    former = {s["jpg"]: s for s in first}
    for sample in second:
        np.testing.assert_array_equal(np.unique(decode_label_map(sample["superpixels.png"])), range(4))
        assert sample["source.superpixels.png"] == former[sample["jpg"]]["superpixels.png"]
        assert sample["source.json"] == former[sample["jpg"]]["json"]


def test_further_maps_stand_beside_the_first(images, tmp_path):
    alone = samples(images, tmp_path / "alone")
    maps = {"fine": {"segments": 200}, "boxes": {"backend": "grid", "rows": 20, "columns": 20}}
    found = samples(images, tmp_path / "found", maps=maps)
    for ours, plain in zip(found, alone, strict=True):
        assert list(ours) == ["jpg", "superpixels.png", "superpixels-fine.png", "superpixels-boxes.png", "json"]
        assert {name: ours[name] for name in plain} == plain
        assert decode_label_map(ours["superpixels-fine.png"]).max() in range(150, 200)
        boxes = Image.open(io.BytesIO(ours["superpixels-boxes.png"]))
        assert boxes.mode == "I;16"
        np.testing.assert_array_equal(np.unique(np.asarray(boxes)), range(400))


def test_a_main_map_of_more_than_255_ids_is_no_sample(images, tmp_path):
    plan = Plan(list_images(images), ShardSettings(superpixels={"backend": "grid", "rows": 16, "columns": 16}))
    (tmp_path / "s").mkdir()
    result = make_shard(plan.task(0), folder=folder_at(tmp_path / "s"))
    assert {entry.reason for entry in result.quarantine} == {"256 superpixels, more than 255"}
