"""Lines are appended whole or not at all, and what of them is damaged is dropped, counted, and costs no other line."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import json_lines
from pipeline.artifacts.json_lines import keep_lines, read_lines
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import append_whole

SEED = int(os.environ.get("R2O_FUZZ_SEED", "13"))


def fits(record: dict[str, Any]) -> bool:
    return isinstance(record.get("step"), int)


def file_of(folder: Path, *lines: object) -> Path:
    """A file of lines; bytes are written as they are."""
    encoded = [line if isinstance(line, bytes) else json.dumps({"step": line}).encode() + b"\n" for line in lines]
    (folder / "a.jsonl").write_bytes(b"".join(encoded))
    return folder / "a.jsonl"


def steps(records: list[dict[str, Any]]) -> list[int]:
    return [record["step"] for record in records]


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 1, "lo\n', b"\n", b"\xff\xfe\n", b"[1]\n", b"3\n", b"null\n", b"{}\n", b'{"step": "1"}\n',
        b"[" * 100_000 + b"\n", b'{"step": 1}{"step": 2}\n',
    ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle_costs_that_line(
    tmp_path: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path, 0, damaged, 1, damaged, 2, 3)
    assert steps(read_lines(path, fits=fits)) == [0, 1, 2, 3]
    assert steps(keep_lines(path, fits=fits, wanted=lambda record: record["step"] < 3)) == [0, 1, 2]
    assert capsys.readouterr().err == f"r2o: WARNING: {path}: 2 damaged lines dropped\n"
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n{"step": 2}\n'
    assert steps(keep_lines(path, fits=fits, wanted=lambda record: True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_what_a_kill_cut_short_at_the_end_is_cut_off_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path, 0, 1, b'{"step": 2}')
    monkeypatch.setattr(json_lines, "write_atomic", None)  # a full disk has no room for another file
    assert steps(keep_lines(path, fits=fits, wanted=lambda record: True)) == [0, 1]
    assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    assert capsys.readouterr().err == f"r2o: WARNING: {path}: 1 damaged line dropped\n"
    assert steps(keep_lines(path, fits=fits, wanted=lambda record: record["step"] < 1)) == [0]
    assert path.read_bytes() == b'{"step": 0}\n'


def test_no_file_has_no_lines_and_a_link_is_none(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none", fits=fits) == []
    assert keep_lines(tmp_path / "none", fits=fits, wanted=fits) == []
    (tmp_path / "link").symlink_to(file_of(tmp_path, 0))
    for refused in (
        lambda: read_lines(tmp_path / "link", fits=fits),
        lambda: keep_lines(tmp_path / "link", fits=fits, wanted=fits),
        lambda: append_whole(tmp_path / "link", b"{}\n"),
    ):
        with pytest.raises(InputError, match="link: a link"):
            refused()
    assert steps(read_lines(tmp_path / "a.jsonl", fits=fits)) == [0]


def test_flips_and_cuts_cost_the_lines_that_they_are_in(tmp_path: Path) -> None:
    rng, path = random.Random(SEED), file_of(tmp_path, *range(40))
    data = path.read_bytes()
    for _ in range(300):
        place = rng.randrange(len(data))
        changed = [data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :], data[:place]]
        number = data[:place].count(b"\n")
        for content, others in zip(changed, ([*range(number), *range(number + 2, 40)], range(number)), strict=True):
            path.write_bytes(content)
            found = steps(read_lines(path, fits=fits))
            assert set(found) >= set(others), (SEED, place)
            assert len(found) <= 41, (SEED, place)


def test_an_append_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    append_whole(path, b"one\n")
    append_whole(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            append_whole(path, b"three\n")
    assert path.read_bytes() == b"one\ntwo\n"
