"""Samples beside what their images are now."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.artifacts.sample import SampleMeta
from pipeline.foundation.exit_codes import EXIT_DAMAGED
from preprocess import verify
from preprocess.check_sample import fault_of, forms_of
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images

PER_SHARD = 4


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    """Ten images, of which a PNG is changed when it is stored, and one that is none."""
    root = make_folder(tmp_path / "images", 9, classes=("cat", "dog"))
    (root / "dog" / "broken.jpg").write_bytes(b"text")
    (root / "dog" / "a \n 100%.png").write_bytes(png(0))
    return root


def made(place: Path | str, shards: Path, version: int) -> Path:
    job = ShardJob(shards, Plan(list_images(place), ShardSettings(images_per_shard=PER_SHARD, max_bad_fraction=0.5)))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(replace(task, format_version=version), folder=job.folder))
    job.finish()
    return shards


@pytest.fixture(autouse=True)
def checked_as_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes, and whatever format the manifest names; that the set itself is whole, others ask."""
    monkeypatch.setattr(verify, "check", lambda *_, **__: ([], {}))


def keys(shards: Path) -> dict[str, tuple[str, str]]:
    """Shard and key by source, by plain tarfile."""
    found = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    source = json.load(tar.extractfile(member))["source"]
                    found[source] = path.name, member.name.partition(".")[0]
    return found


def compared(shards: Path, images: Path | str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str], str]:
    """Exit code, lines but for the first, error."""
    capsys.readouterr()
    code = verify.main(["--shards", str(shards), "--images", str(images), "--workers", "2"])
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("r2o: error: ")]
    assert len(errors) <= 1
    return code, said.out.splitlines()[1:], errors[0] if errors else ""


def test_the_same_images_are_the_same_wherever_they_lie(images, tmp_path, capsys):
    shards = made(images, tmp_path / "shards", 2)
    images = images.rename(tmp_path / "moved")
    told = f"{shards}: 10 samples are what their images in {images} are"
    assert compared(shards, images, capsys) == (0, [told], "")
    assert verify.main(["--shards", str(shards)]) == 0


def test_what_differs_and_what_is_gone_is_named(images, tmp_path, capsys):
    shards = made(images, tmp_path / "shards", 2)
    at = keys(shards)
    flipped = images / "cat" / "image 2.jpg"
    data = bytearray(flipped.read_bytes())
    data[-9] ^= 1
    status = flipped.stat()
    flipped.write_bytes(data)
    os.utime(flipped, ns=(status.st_atime_ns, status.st_mtime_ns))
    (images / "dog" / "a \n 100%.png").write_bytes(png(1))
    (images / "dog" / "image 5.jpg").unlink()
    (images / "dog" / "image 7.jpg").unlink()
    (images / "dog" / "image 7.jpg").symlink_to("nowhere")
    (images / "cat" / "0 new.jpg").write_bytes(b"moves all others to other places of the order")
    code, lines, error = compared(shards, images, capsys)
    expected = {
        "cat/image 2.jpg": "its image is another one now",
        "dog/a \n 100%25.png": "its image is another one now",
        "dog/image 5.jpg": "its image is gone",
        "dog/image 7.jpg": "its image: cannot be read: No such file or directory",
    }
    by_fault: dict[tuple[str, str], list[str]] = {}
    for source, fault in expected.items():
        by_fault.setdefault((at[source][0], fault), []).append(at[source][1])
    named = [f"{shard}: {fault}: sample {', '.join(sorted(found))}" for (shard, fault), found in by_fault.items()]
    assert (code, sorted(lines[:-1])) == (EXIT_DAMAGED, sorted(named))
    assert lines[-1] == f"{shards}: 6 samples are what their images in {images} are"
    assert error == (
        f"r2o: error: {shards}: 4 of 10 samples are not what their images in {images} are; give the images of that "
        "time, or make the shards again with --overwrite"
    )


def test_format_1_is_compared_where_the_jpg_is_the_image(images, tmp_path, capsys):
    shards = made(images, tmp_path / "shards", 1)
    unknown = "1 of format 1 were changed when they were stored and cannot be compared"
    assert compared(shards, images, capsys)[:2] == (
        0,
        [f"{shards}: 9 samples are what their images in {images} are; {unknown}"],
    )
    shutil.copy(images / "cat" / "image 0.jpg", images / "cat" / "image 2.jpg")
    (images / "dog" / "a \n 100%.png").unlink()
    code, lines, error = compared(shards, images, capsys)
    assert code == EXIT_DAMAGED
    assert lines[-1] == f"{shards}: 8 samples are what their images in {images} are"
    assert "2 of 10 samples are not" in error


def test_behind_a_url_and_in_an_archive(images, tmp_path, capsys):
    shards, fs = made(images, tmp_path / "shards", 2), fsspec.filesystem("memory")
    try:
        for path in images.rglob("*.*"):
            fs.pipe(f"/compared/{path.relative_to(images)}", path.read_bytes())
        assert compared(shards, "memory://compared", capsys)[0] == 0
    finally:
        fs.store.clear()
    archive = shutil.make_archive(str(tmp_path / "all"), "tar", images)
    assert compared(shards, archive, capsys)[0] == 0
    assert compared(made(archive, tmp_path / "of the tar", 2), images, capsys)[0] == 0


def test_a_damaged_shard_is_left_out_and_said_so(images, tmp_path, capsys, monkeypatch):
    shards = made(images, tmp_path / "shards", 2)
    left = [stats for stats in Manifest.read(shards).shards if stats.name != "r2o-000001.tar"]
    monkeypatch.setattr(verify, "check", lambda *_, **__: ([], {"r2o-000001.tar": ["r2o-000001.index is missing"]}))
    (shards / "r2o-000001.index").unlink()
    code, lines, error = compared(shards, images, capsys)
    assert code == EXIT_DAMAGED
    stored = sum(stats.samples for stats in left)
    assert lines == [
        f"{shards}: {stored} samples are what their images in {images} are; 1 damaged shards were left out"
    ]
    assert "1 of 3 shards, 10 samples damaged" in error


def members_of(shards: Path, number: int, sample: int) -> dict[str, bytes]:
    data = (shards / f"r2o-{number:06d}.tar").read_bytes()
    entry = ShardIndex.decode((shards / f"r2o-{number:06d}.index").read_bytes()).entries[sample]
    return {name: data[offset : offset + size] for name, (offset, size) in entry.members.items()}


def test_a_jpg_that_is_not_the_image_that_json_names(images, tmp_path):
    shards = made(images, tmp_path / "shards", 2)
    forms, members = forms_of(Manifest.read(shards)), members_of(shards, 0, 0)
    meta = SampleMeta.decode(members["json"])
    assert meta.changed == ()
    assert fault_of(members, forms, deep=True, is_hashed=True) is None
    other = members | {"jpg": members["jpg"] + b"\0"}
    assert fault_of(other, forms, deep=False, is_hashed=True) == "jpg is not the source that json names"
    for wrong in ({"source_bytes": 1}, {"source_sha256": "0" * 64}):
        told = members | {"json": replace(meta, **wrong).encode()}
        assert fault_of(told, forms, deep=True, is_hashed=False) == "jpg is not the source that json names"
    changed = members | {"json": replace(meta, changed=("format PNG",), source_bytes=1).encode()}
    assert fault_of(changed, forms, deep=True, is_hashed=True) is None
    first = members | {"json": replace(meta, source_bytes=None, source_sha256=None).encode()}
    assert fault_of(first, forms, deep=True, is_hashed=False) is None
    assert fault_of(first, forms, deep=True, is_hashed=True) == "json does not name the bytes of its source"
