from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import atomic_writer, is_temporary, open_own, read_own, sha256_of, write_atomic

REPOSITORY = Path(__file__).parents[3]


def test_bytes_and_text_are_written(tmp_path):
    write_atomic(tmp_path / "b", b"\x00\xff")
    write_atomic(tmp_path / "t", "é\n")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_bytes() == b"\xc3\xa9\n"


def test_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_atomic(tmp_path / "f", b"x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640


def test_a_failure_keeps_the_former_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "f"
    write_atomic(path, b"former")

    def fail_half_way() -> None:
        with atomic_writer(path) as file:
            file.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_there_before_the_end(tmp_path):
    path = tmp_path / "f"
    with atomic_writer(path) as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert not path.exists()
        assert all(is_temporary(entry) for entry in tmp_path.iterdir())
    assert path.stat().st_size == 100_000


@pytest.mark.processes
def test_a_killed_writer_leaves_only_what_is_temporary(tmp_path):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom pipeline.foundation.files import atomic_writer\n"
        "with atomic_writer(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "f")], cwd=REPOSITORY, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [is_temporary(entry) for entry in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("name", ["f", "manifest.json", "a.tmp", ".hidden", ".job"])
def test_other_files_are_not_temporary(name):
    assert not is_temporary(Path(name))


def test_sha256(tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "f").write_bytes(data)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_rename_is_followed_by_a_sync_of_its_folder(tmp_path, monkeypatch):
    told = []
    rename, sync = os.replace, os.fsync

    def note_sync(descriptor):
        told.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda a, b: (told.append("rename"), rename(a, b)))
    write_atomic(tmp_path / "f", b"x")
    assert told == ["file", "rename", "folder"]


def test_a_plain_file_is_read_and_a_link_a_pipe_and_a_device_are_refused(tmp_path):
    (tmp_path / "plain").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    assert read_own(tmp_path / "plain") == b"x"
    for name in ("link", "dangling"):
        with pytest.raises(InputError, match=f"{name}: a link, and r2o follows none"):
            read_own(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: a link"):
            open_own(tmp_path / name, os.O_RDWR | os.O_CREAT)
    assert not (tmp_path / "nowhere").exists()
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with pytest.raises(InputError, match="pipe: no plain file"):
            open_own(tmp_path / "pipe", flags)
    with pytest.raises(InputError, match="null: no plain file"):
        read_own(Path("/dev/null"))
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read_own(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "none")


def test_a_written_file_takes_the_place_of_a_link_and_leaves_what_it_led_to(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "f").symlink_to(tmp_path / "victim")
    write_atomic(tmp_path / "f", b"x")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "f").is_symlink()
