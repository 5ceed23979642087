"""Images that were listed and cannot be read: one of them, all of a folder, all of a mount, all of a disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings
from preprocess.shards import make_one
from preprocess.shards.make_one import ShardResult, make_shard
from preprocess.shards.plan import Plan, ShardTask
from preprocess.sources import reader as readers
from preprocess.sources.list_images import list_images
from preprocess.sources.reader import Reader

GONE = r"{}: gone since its images were listed \(is it mounted\?\); bring it back and run the same command again$"


@pytest.fixture
def images(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    return make_folder(tmp_path / "images", 6, classes=("cat", "dog"))


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been."""
    slept: list[float] = []
    monkeypatch.setattr(make_one.time, "sleep", slept.append)
    return slept


def task_of(place: Path | str) -> ShardTask:
    return Plan(list_images(place), ShardSettings()).task(0)


def made(task: ShardTask, folder: Path) -> ShardResult:
    folder.mkdir(exist_ok=True)
    return make_shard(task, folder=folder_at(folder))


def reasons(result: ShardResult) -> dict[str, str]:
    return {entry.source: entry.reason for entry in result.quarantine}


def test_an_image_that_vanished_alone_is_quarantined_and_may_come_back(images, tmp_path, pauses):
    task = task_of(images)
    lost = images / "cat" / "image 0.jpg"
    lost.rename(tmp_path / "aside")
    result = made(task, tmp_path / "shards")
    assert reasons(result) == {"cat/image 0.jpg": "cannot be read: No such file or directory"}
    assert (result.stats.samples, pauses) == (5, [])
    source = next(source for source in task.sources if source.name == b"cat/image 0.jpg")
    with Reader(task.root, task.kind) as reader:
        assert not reader.is_readable(source)
        (tmp_path / "aside").rename(lost)
        assert reader.is_readable(source)
    assert made(task, tmp_path / "again").quarantine == ()


def test_a_pipe_in_place_of_an_image_costs_that_image(images, tmp_path):
    task = task_of(images)
    (images / "cat" / "image 0.jpg").unlink()
    os.mkfifo(images / "cat" / "image 0.jpg")
    result = made(task, tmp_path / "shards")
    assert reasons(result) == {"cat/image 0.jpg": "cannot be read: not a regular file"}
    assert result.stats.samples == 5


@pytest.mark.parametrize(
    "lost", ["folder", "folder is empty", "folder is a file", "root", "root is empty", "root is a dead link"]
)
def test_images_that_went_with_their_folder_stop_the_job(images, tmp_path, lost):
    task = task_of(images)
    where = images / "cat" if lost.startswith("folder") else images
    shutil.move(where, tmp_path / "aside")
    if lost == "folder is a file":
        where.touch()
    elif lost.endswith("is empty"):
        where.mkdir()
    elif lost == "root is a dead link":
        where.symlink_to("nowhere")
    with pytest.raises(InputError, match=GONE.format(where)):
        made(task, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


@pytest.mark.parametrize("lost", ["unmounted", "an empty mount point"])
def test_links_into_a_mount_that_is_gone_stop_the_job(images, tmp_path, lost):
    farm = tmp_path / "farm"
    farm.mkdir()
    for path in (images / "cat").iterdir():
        (farm / path.name).symlink_to(path)
    task = task_of(farm)
    shutil.rmtree(images / "cat")
    if lost == "an empty mount point":
        (images / "cat").mkdir()
    with pytest.raises(InputError, match=GONE.format(images / "cat")):
        made(task, tmp_path / "shards")


def test_a_link_that_led_nowhere_when_it_was_listed_is_quarantined(images, tmp_path):
    (images / "cat" / "dead.jpg").symlink_to(tmp_path / "nowhere" / "dead.jpg")
    result = made(task_of(images), tmp_path / "shards")
    assert reasons(result) == {"cat/dead.jpg": "cannot be read: No such file or directory"}
    assert result.stats.samples == 6


def test_behind_a_url_a_folder_is_gone_when_nothing_lies_in_it(tmp_path, images):
    fs = fsspec.filesystem("memory")
    for path in images.rglob("*.jpg"):
        fs.pipe(f"/lost/{path.relative_to(images)}", path.read_bytes())
    try:
        task = task_of("memory://lost")
        fs.rm("/lost/cat/image 0.jpg")
        assert reasons(made(task, tmp_path / "one")) == {"cat/image 0.jpg": "cannot be read: FileNotFoundError"}
        fs.rm("/lost/cat", recursive=True)
        with pytest.raises(InputError, match=GONE.format("memory://lost/cat")):
            made(task, tmp_path / "two")
    finally:
        fs.store.clear()


def test_a_tar_that_is_gone_with_its_folder_is_named_by_the_folder(images, tmp_path, pauses):
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / "all"), "tar", images)
    task = task_of(tmp_path / "in")
    (tmp_path / "in" / "all.tar").rename(tmp_path / "aside.tar")
    with pytest.raises(InputError, match=GONE.format(tmp_path / "in")):
        made(task, tmp_path / "shards")
    (tmp_path / "in" / "other.tar").touch()
    with pytest.raises(InputError, match=r"reading failed \(all\.tar: No such file or directory\); run the same"):
        made(task, tmp_path / "shards")
    assert pauses == 2 * [0.1, 0.4, 1.0]


@pytest.mark.parametrize(("failures", "ends_well"), [(3, True), (4, False)])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_disk_that_fails_is_asked_again(images, tmp_path, monkeypatch, pauses, number, failures, ends_well):
    whole, left = readers.open_regular, [failures]

    def failing(path: bytes, flags: int = os.O_RDONLY) -> int:
        if b"image 3" in path and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number), path)
        return whole(path, flags)

    monkeypatch.setattr(readers, "open_regular", failing)
    if ends_well:
        result = made(task_of(images), tmp_path / "shards")
        assert (result.stats.samples, result.quarantine) == (6, ())
    else:
        with pytest.raises(InputError, match=rf"dog/image 3\.jpg: reading failed \({os.strerror(number)}\); run the"):
            made(task_of(images), tmp_path / "shards")
    assert pauses == [0.1, 0.4, 1.0]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_may_not_be_entered_any_more_stops_the_job(images, tmp_path, monkeypatch, is_there):
    """As a ticket that ran out has it; root may enter everything, so that the refusal is made."""
    task, closed = task_of(images), os.fsencode(images / "cat") + b"/"
    whole = {name: getattr(module, name) for module, name in ((os, "stat"), (readers, "open_regular"))}

    def refusing(name: str) -> Callable[..., object]:
        def call(path: object, *arguments: object, **named: object) -> object:
            if isinstance(path, bytes) and path.startswith(closed) and not (is_there and name == "stat"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return whole[name](path, *arguments, **named)

        return call

    monkeypatch.setattr(os, "stat", refusing("stat"))
    monkeypatch.setattr(readers, "open_regular", refusing("open_regular"))
    if is_there:  # the images alone are closed
        assert set(reasons(made(task, tmp_path / "shards")).values()) == {"cannot be read: Permission denied"}
    else:
        with pytest.raises(InputError, match=GONE.format(images / "cat")):
            made(task, tmp_path / "shards")


def test_a_member_beside_the_image_is_asked_for_again(images, tmp_path, monkeypatch, pauses):
    shards = tmp_path / "own"
    made(task_of(images), shards)
    task = task_of(shards)
    whole, left = Reader.read_part, [3]

    def failing(reader: Reader, *arguments: object) -> bytes:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return whole(reader, *arguments)

    monkeypatch.setattr(Reader, "read_part", failing)
    assert made(task, tmp_path / "one").stats.samples == 6
    left[0] = 4
    with pytest.raises(InputError, match=r"\.jpg: reading failed \(Input/output error\); run the same command again"):
        made(task, tmp_path / "two")
    assert pauses == 2 * [0.1, 0.4, 1.0]


def test_images_that_changed_are_in_no_shard(images, tmp_path):
    task = task_of(images)
    path = images / "cat" / "image 0.jpg"
    shutil.copy(images / "dog" / "image 1.jpg", path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match=r"cat/image 0\.jpg changed after it was listed \("):
        made(task, tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_shard_that_must_be_another_is_not_published(images, tmp_path):
    task = replace(task_of(images), format_version=2)
    first = made(task, tmp_path / "shards").stats
    before = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    assert made(replace(task, expected=first), tmp_path / "shards").stats == first
    shutil.copy(images / "dog" / "image 1.jpg", images / "cat" / "image 0.jpg")
    other = replace(task_of(images), format_version=2, expected=first)
    message = (
        rf"^{tmp_path}/shards/r2o-000000\.tar: its images are not those that it was made from \(the shard that is "
        r"there was left\); give the images of that time, or --overwrite to make all again$"
    )
    with pytest.raises(InputError, match=message):
        made(other, tmp_path / "shards")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()} == before
    wrong_index = task_of(images), first.model_copy(update={"index_sha256": "0" * 64})
    with pytest.raises(InputError, match="its images are not those"):
        made(replace(wrong_index[0], expected=wrong_index[1]), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
