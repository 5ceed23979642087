"""Samples that could not be read stay named and counted, whatever becomes of their file."""

import json
import os
import random
from pathlib import Path

import pytest

from train.data.shards.reader import Skipped
from train.data.shards.skipped import SkippedLog

SEED = int(os.environ.get("R2O_FUZZ_SEED", "13"))


def sample(number: int, *, epoch: int = 0) -> Skipped:
    return Skipped(epoch, number, "r2o-000000.tar", f"{number:09d}", "damaged, as it is")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four samples, skipped in two steps of two epochs."""
    log = SkippedLog(tmp_path, first_step=0)
    log.write([sample(0), sample(1)], step=3)
    log.write([sample(2, epoch=1), sample(3, epoch=1)], step=7)
    return tmp_path / "skipped.jsonl"


def test_a_resume_drops_what_it_will_do_again(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = path.read_bytes().splitlines()
    assert json.loads(lines[0]) == {"step": 3, **sample(0)._asdict()}
    capsys.readouterr()
    log = SkippedLog(tmp_path, first_step=7)
    assert (log.count_in(0), log.count_in(1)) == (2, 0)
    assert path.read_bytes().splitlines() == lines[:2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["in the middle", "at the end", "of another shape", "no text"])
def test_a_half_written_line_costs_that_line_and_is_said_once(
    path: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    half = {
        "in the middle": [lines[0], lines[1][:30] + b"\n", *lines[2:]],
        "at the end": [*lines, b'{"step": 9, "epo'],
        "of another shape": [*lines[:2], b'{"step": 4}\n', *lines[2:]],
        "no text": [b"\x80\xff\n", *lines],
    }[place]
    path.write_bytes(b"".join(half))
    capsys.readouterr()
    log = SkippedLog(tmp_path, first_step=100)
    assert capsys.readouterr().err == f"r2o: WARNING: {path}: 1 damaged line dropped\n"
    assert log.count_in(0) + log.count_in(1) == (3 if place == "in the middle" else 4)
    log.write([sample(9, epoch=1)], step=100)
    capsys.readouterr()
    again = SkippedLog(tmp_path, first_step=101)
    assert again.lines == log.lines
    assert capsys.readouterr().err == ""


def test_no_flip_and_no_cut_is_a_traceback(path: Path, tmp_path: Path) -> None:
    rng, data = random.Random(SEED), path.read_bytes()
    for _ in range(200):
        place = rng.randrange(len(data))
        flipped = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        for content in (flipped, data[:place]):
            path.write_bytes(content)
            lines = SkippedLog(tmp_path, first_step=100).lines
            assert SkippedLog(tmp_path, first_step=100).lines == lines, (SEED, place)


def test_an_append_that_fails_leaves_whole_lines(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = path.read_bytes()
    log = SkippedLog(tmp_path, first_step=100)

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            log.write([sample(4, epoch=1)], step=100)
    assert path.read_bytes() == data
    assert log.count_in(1) == 3  # it was skipped, whether or not that could be written
