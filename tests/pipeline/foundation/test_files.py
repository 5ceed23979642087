from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.foundation.files import atomic_writer, is_temporary, sha256_of, write_atomic

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
