"""Images at which native code dies for real: the child gets a `sitecustomize` in which some bytes are deadly."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import folder_at
from preprocess.config import ShardSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan, ShardTask
from preprocess.shards.worker import Child, make_shard_isolated
from preprocess.sources.list_images import list_images

pytestmark = pytest.mark.processes

DEADLY = """
import ctypes, os, signal, simplejpeg

whole = simplejpeg.decode_jpeg_header

def header(data, *arguments, **named):
    if b"SEGFAULT" in data:
        ctypes.string_at(0)
    if b"DIVIDE" in data:
        os.kill(os.getpid(), signal.SIGFPE)
    if b"ENDLESS" in data:
        while True:
            pass
    if b"GREEDY" in data:
        bytearray(8 * 2**30)
    if b"SLEEPY" in data:
        import time
        time.sleep(0.5)
    if b"ONCE" in data:
        path = data.rpartition(b"ONCE")[2]
        if os.path.exists(path):
            os.unlink(path)
            os.kill(os.getpid(), signal.SIGSEGV)
    return whole(data, *arguments, **named)

simplejpeg.decode_jpeg_header = header
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "deadly").mkdir()
    (tmp_path / "deadly" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path / "deadly"))
    child = Child()
    yield child
    child.close()


@pytest.fixture
def new_task(tmp_path, make_folder):
    def make(deadly: dict[str, bytes], **settings: object) -> ShardTask:
        root = make_folder(tmp_path / "images", 9)
        for name, data in deadly.items():
            (root / name).write_bytes((root / "image 0.jpg").read_bytes() + data)
        return Plan(list_images(root), ShardSettings(**settings)).task(0)

    return make


def made(task: ShardTask, child: Child, folder: Path):
    folder.mkdir()
    result = make_shard_isolated(task, folder=str(folder), owned=False, child=child)
    return result, {entry.source: entry.reason for entry in result.quarantine}


def test_only_the_deadly_images_are_lost(new_task, child, tmp_path):
    task = new_task({"a.jpg": b"SEGFAULT", "b.jpg": b"DIVIDE"})
    result, reasons = made(task, child, tmp_path / "shards")
    assert reasons == {
        "a.jpg": "native code died of it (SIGSEGV), also when tried again",
        "b.jpg": "native code died of it (SIGFPE), also when tried again",
    }
    assert result.stats.samples == 9
    bad = {number: reasons[s.name.decode()] for number, s in enumerate(task.sources) if s.name in (b"a.jpg", b"b.jpg")}
    (tmp_path / "oracle").mkdir()
    assert make_shard(task, folder=folder_at(tmp_path / "oracle"), bad=bad).stats == result.stats
    assert sorted(p.name for p in (tmp_path / "shards").glob("r2o*")) == ["r2o-000000.index", "r2o-000000.tar"]


def test_too_much_cpu_time_is_tried_again_alone(new_task, child, tmp_path):
    task = new_task({"a.jpg": b"ENDLESS"}, max_cpu_seconds=0.3)
    start = time.process_time(), time.monotonic()
    result, reasons = made(task, child, tmp_path / "shards")
    assert reasons == {"a.jpg": "took more CPU time than max_cpu_seconds=0.3, also when tried again"}
    assert result.stats.samples == 9
    assert time.monotonic() - start[1] >= 2 * 0.3


def test_waiting_is_no_cpu_time(new_task, child, tmp_path):
    result, reasons = made(new_task({"a.jpg": b"SLEEPY"}, max_cpu_seconds=0.3), child, tmp_path / "shards")
    assert (result.stats.samples, reasons) == (10, {})


def test_too_much_memory_costs_the_image(new_task, child, tmp_path):
    result, reasons = made(new_task({"a.jpg": b"GREEDY"}, max_memory_mb=1024), child, tmp_path / "shards")
    assert reasons == {"a.jpg": "needs more memory than max_memory_mb=1024"}
    assert result.stats.samples == 9


def test_an_image_that_dies_only_once_is_kept(new_task, child, tmp_path):
    (tmp_path / "once").touch()
    result, reasons = made(new_task({"a.jpg": b"ONCE" + os.fsencode(tmp_path / "once")}), child, tmp_path / "shards")
    assert (result.stats.samples, reasons) == (10, {})


def test_the_child_is_kept_and_started_again_after_a_death(new_task, child, tmp_path):
    task = new_task({})
    first, _ = made(task, child, tmp_path / "one")
    process = child._process
    second, _ = made(task, child, tmp_path / "two")
    assert child._process is process
    process.kill()
    process.wait()
    third, _ = made(task, child, tmp_path / "three")
    assert child._process is not process
    assert first.stats == second.stats == third.stats


def test_kills_from_outside_say_nothing_about_an_image(new_task, child, tmp_path):
    """SIGKILL, as from the kernel's memory killer, at the same image twice; the third try is left alone."""
    task = new_task({"a.jpg": b"SLEEPY"})
    stop = threading.Event()

    def kill_twice() -> None:
        killed: set[int] = set()
        while len(killed) < 2 and not stop.is_set():
            for process in psutil.Process().children():
                if process.pid not in killed and "preprocess.shards.worker" in process.cmdline():
                    time.sleep(0.7)  # into the image that waits, or about there
                    killed.add(process.pid)
                    process.kill()
            time.sleep(0.01)

    killer = threading.Thread(target=kill_twice)
    killer.start()
    try:
        result, reasons = made(task, child, tmp_path / "shards")
    finally:
        stop.set()
        killer.join()
    assert (result.stats.samples, reasons) == (10, {})


def test_killed_again_and_again_is_one_line(new_task, child, tmp_path, monkeypatch):
    task = new_task({}, retries=1)
    real = child._start

    def start_and_kill() -> None:
        real()
        os.kill(child._process.pid, signal.SIGKILL)

    monkeypatch.setattr(child, "_start", start_and_kill)
    with pytest.raises(InputError, match=r"r2o-000000\.tar: the process that makes it was killed 2 times \(SIGKILL"):
        made(task, child, tmp_path / "shards")


def test_what_the_child_raises_arrives(new_task, child, tmp_path):
    task = new_task({})
    with pytest.raises(FileNotFoundError):
        make_shard_isolated(task, folder=str(tmp_path / "nowhere"), owned=False, child=child)
    (tmp_path / "shards").mkdir()
    with pytest.raises(InputError, match="the job that wanted this shard is gone; nothing was written"):
        make_shard_isolated(task, folder=str(tmp_path / "shards"), child=child)
    assert os.listdir(tmp_path / "shards") == []
