"""A lease is what keeps two drivers apart where there is no flock; the flock is in test_job and test_damage."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation import locks
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import folder_at
from pipeline.foundation.locks import only_holder


@pytest.fixture
def bucket(monkeypatch):
    for name in ("RENEW_SECONDS", "STALE_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(locks, name, getattr(locks, name) / 50)
    folder = folder_at("memory://locks/.job")
    folder.make()
    yield folder
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs.clear()


def test_a_lease_that_is_renewed_keeps_others_away(bucket):
    again = locks.held(bucket, shards="s")
    with (
        locks.held(bucket, shards="s"),
        pytest.raises(InputError, match="s: another job is making these shards"),
        again,
    ):
        pass
    assert bucket.names() == []
    with locks.held(bucket, shards="s"):
        assert bucket.names() == ["lock"]


def test_a_lease_of_a_killed_driver_is_taken_over(bucket, capsys):
    bucket.write("lock", '{"token": "dead", "count": 7}\n')
    start = time.monotonic()
    with locks.held(bucket, shards="s"):
        assert b"dead" not in bucket.read("lock")
    assert time.monotonic() - start >= locks.STALE_SECONDS
    assert "waiting" in capsys.readouterr().err


def test_of_two_that_come_at_once_the_last_writer_holds(bucket, monkeypatch):
    def another_writes(seconds: float) -> None:
        bucket.write("lock", '{"token": "another", "count": 0}\n')

    monkeypatch.setattr(locks, "sleep", another_writes)
    with pytest.raises(InputError, match="another job"), locks.held(bucket, shards="s"):
        pass
    assert b"another" in bucket.read("lock")


def test_a_lock_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Its holder ends and removes it between our opening and our locking; we lock the one that is there then."""
    path, real = tmp_path / "lock", fcntl.flock
    calls = []

    def flock(file, how):
        calls.append(path.exists())
        if len(calls) == 1:
            path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locks.held(folder_at(tmp_path), shards="s"):
        assert path.exists()
    assert len(calls) == 2


@pytest.mark.processes
def test_a_lock_ends_with_its_holder_though_a_child_of_it_lives_on(tmp_path: Path) -> None:
    holder = (
        "import os, signal, sys, time; from pathlib import Path; from pipeline.foundation.locks import only_holder\n"
        "with only_holder(Path(sys.argv[1]), otherwise='busy'):\n"
        "    if os.fork() == 0:\n"
        "        print('held', flush=True); os.close(1)\n"  # the child lives, and has let go
        "    time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "lock")], stdout=subprocess.PIPE, process_group=0
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="busy"), only_holder(tmp_path / "lock", otherwise="busy"):
        pass
    process.kill()
    process.wait()
    with only_holder(tmp_path / "lock", otherwise="busy"):
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()


def test_a_lock_that_is_a_link_is_refused_and_nothing_made_behind_it(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match="lock: a link"), only_holder(tmp_path / "lock", otherwise="held"):
        pass
    assert not (tmp_path / "victim").exists()
