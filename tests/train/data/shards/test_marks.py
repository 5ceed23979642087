"""How long a mark is believed, and what ends that: bit rot in a shard that was found whole once is found again."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from tests.train.data.test_stream import SETTINGS, reader_of, with_data
from train.config.data import DataSettings
from train.data.order import SampleOrder
from train.data.shards import cache as cache_module
from train.data.shards import files as files_module
from train.data.shards.files import ShardFiles
from train.data.stream import SampleMaker, Slot
from train.distributed.world import World
from train.run.panels.panels import Panels
from train.run.probe import Probe

FIRST = "r2o-000000.tar"
DAY = 86400
CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R2O_CACHE", str(tmp_path / "marks"))
    monkeypatch.setattr(files_module, "FIRST_PAUSE", 0.001)
    return tmp_path / "marks" / "verified"


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    calls: list[Path] = []
    original = files_module.sha256_of_own
    for module in (files_module, cache_module):
        monkeypatch.setattr(module, "sha256_of_own", lambda path: calls.append(path) or original(path))
    return calls


def files_of(place: Path, **options: object) -> ShardFiles:
    return ShardFiles(place, Manifest.read(place), **options)


def whole(files: ShardFiles, shard: int) -> bytes:
    return files.read(shard, 0, files.manifest.shards[shard].bytes)


def rot(path: Path, at: int | None = None) -> None:
    """Flip a bit as a disk does: no time changes."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2 if at is None else at)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def aged(marks: Path, days: float) -> None:
    for mark in marks.iterdir():
        os.utime(mark, (time.time() - days * DAY,) * 2)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("days", "age", "compared"), [(7.0, 6.9, 0), (7.0, 7.1, 1), (0.5, 0.6, 1), (7.0, -1, 1), (None, 1e4, 0)]
)
def test_a_mark_is_believed_for_so_long_and_then_renewed(
    copied: Path,
    tmp_path: Path,
    marks: Path,
    hashed: list[Path],
    cached: bool,
    days: float | None,
    age: float,
    compared: int,
) -> None:
    options = {"recheck_days": days, "cache": tmp_path / "disk" if cached else None}
    whole(files_of(copied, **options), 0)
    aged(marks, age)
    hashed.clear()
    for _ in range(3):  # as three processes
        whole(files_of(copied, **options), 0)
    assert len(hashed) == compared


def test_a_shard_that_rots_in_its_folder_is_found_when_its_mark_is_old(copied: Path, marks: Path) -> None:
    good = whole(files_of(copied), 0)
    rot(copied / FIRST)
    assert whole(files_of(copied), 0) != good  # what is promised: not before
    aged(marks, 8)
    for recheck_days in (7.0, None):  # whoever comes next does not believe the old mark either
        with pytest.raises(InputError, match=f"{FIRST} is not what the manifest names"):
            whole(files_of(copied, recheck_days=recheck_days), 0)


def test_a_copy_that_rots_is_fetched_again(copied: Path, tmp_path: Path, marks: Path) -> None:
    good = whole(files_of(copied, cache=tmp_path / "disk"), 0)
    rot(files_of(copied, cache=tmp_path / "disk").cache / FIRST)
    aged(marks, 8)
    assert whole(files_of(copied, cache=tmp_path / "disk"), 0) == good


def sample_of(reader: object, settings: object, sample_id: int) -> object:
    order = SampleOrder.of(settings, tuple(shard.samples for shard in reader.manifest.shards))
    return SampleMaker(reader, order, settings)(Slot(0, 0, sample_id))


def break_json(path: Path, shards: Path, row: int) -> None:
    offset, _ = files_of(shards).entry(0, row).members["json"]
    rot(path, offset)


def test_a_sample_that_cannot_be_decoded_has_its_shard_compared_and_the_message_says_so(
    copied: Path, hashed: list[Path]
) -> None:
    whole(files_of(copied), 0)
    break_json(copied / FIRST, copied, 3)
    hashed.clear()
    reader = reader_of(copied)
    assert sample_of(reader, SETTINGS, 2).sample_id == 2
    assert hashed == []
    with pytest.raises(InputError, match=rf"{FIRST} is not what the manifest names \(SHA-256\)"):
        sample_of(reader, SETTINGS, 3)
    assert len(hashed) == 1
    with pytest.raises(InputError, match=rf"{FIRST} is not what the manifest names \(SHA-256\)"):
        sample_of(reader_of(copied), SETTINGS, 2)  # the next start finds it before any sample


def test_a_copy_with_such_a_sample_is_fetched_again_and_the_sample_is_used(copied: Path, tmp_path: Path) -> None:
    settings = with_data(cache=str(tmp_path / "disk"))
    expected = sample_of(reader_of(copied, settings), settings, 3)
    reader = reader_of(copied, settings)
    break_json(reader.files.cache / FIRST, copied, 3)
    found = sample_of(reader, settings, 3)
    assert (found.image == expected.image).all()
    assert found.skipped is None
    assert (reader.files.cache / FIRST).read_bytes() == (copied / FIRST).read_bytes()


@pytest.mark.parametrize("look", [lambda r, s: Panels(r, s, CPU.device), lambda r, s: Probe(r, s, CPU)])
def test_panels_and_probes_have_a_rotten_copy_fetched_again_too(copied: Path, tmp_path: Path, look: Callable) -> None:
    settings = with_data(cache=str(tmp_path / "disk"))
    reader = reader_of(copied, settings)
    whole(reader.files, 0)
    break_json(reader.files.cache / FIRST, copied, 0)
    look(reader, settings)
    assert (reader.files.cache / FIRST).read_bytes() == (copied / FIRST).read_bytes()


def test_a_whole_shard_with_a_sample_that_is_not_usable_is_compared_once_and_the_sample_named(
    copied: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(copied)
    monkeypatch.setattr("train.data.stream.make_sample", lambda *_, key, **__: (_ for _ in ()).throw(InputError(key)))
    for _ in range(3):
        with pytest.raises(InputError, match=f"^{FIRST}: {reader.key_of(3)}$"):
            sample_of(reader, SETTINGS, 3)
    assert len(hashed) == 2  # before its first use, and after the first trouble


def test_after_a_failed_read_the_next_process_compares(
    copied: Path, marks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    files = files_of(copied, retries=1)
    whole(files, 0)
    assert len(list(marks.iterdir())) == 1
    monkeypatch.setattr(files_module.os, "pread", fail)
    with pytest.raises(InputError, match=f"{FIRST} cannot be read, tried 2 times: Input/output error"):
        whole(files, 0)
    assert list(marks.iterdir()) == []


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "often"])
def test_recheck_days_is_a_positive_number_or_null_and_no_content(value: object) -> None:
    with pytest.raises(ValidationError):
        DataSettings(recheck_days=value)
    assert DataSettings().recheck_days == 7
    assert DataSettings(recheck_days=None).content() == DataSettings(recheck_days=0.5).content()
