"""What torch.save wrote is read as it was written, or not at all; only a failed checksum is damage."""

import errno
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.foundation.errors import InputError
from train.models.torch_file import DamagedError, load_torch_file

CONTENT = {
    "format_version": 1,
    "step": 7,
    "scaler": None,
    "lr": 0.25,
    "model": {"weight": torch.arange(12.0).view(3, 4), "bias": torch.tensor([True, False]), "count": torch.tensor(5)},
    "groups": [{"params": [0, 1], "name": "näme"}],
}
SEED = int(os.environ.get("R2O_FUZZ_SEED", "13"))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(CONTENT, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def members_of(path: Path) -> set[int]:
    """The places of all bytes that a CRC covers, by Python's own reader of archives."""
    covered: set[int] = set()
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            lengths = data[info.header_offset + 26 : info.header_offset + 30]
            begin = info.header_offset + 30 + int.from_bytes(lengths[:2], "little")
            begin += int.from_bytes(lengths[2:], "little")
            covered |= {*range(begin, begin + info.file_size)}
    return covered


def test_what_was_saved_comes_back(file: Path) -> None:
    assert same(load_torch_file(file, what="file"), CONTENT)


def test_every_flip_in_what_a_checksum_covers_is_damage(file: Path) -> None:
    rng, data, covered = random.Random(SEED), file.read_bytes(), sorted(members_of(file))
    assert len(covered) > 400
    for place in rng.sample(covered, 200):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        with pytest.raises(DamagedError, match=r"^file .*saved\.pt is damaged \(.*\): it was changed or cut short"):
            load_torch_file(file, what="file")


def test_flips_in_what_none_covers_and_cuts_change_no_content(file: Path) -> None:
    rng, data = random.Random(SEED), file.read_bytes()
    bare = sorted({*range(len(data))} - members_of(file))
    changed = [(p, data[:p] + bytes([data[p] ^ 1 << rng.randrange(8)]) + data[p + 1 :]) for p in rng.sample(bare, 400)]
    changed += [(cut, data[:cut]) for cut in rng.sample(range(len(data)), 100)]
    counts, told = {"equal": 0, "damaged": 0}, []
    for place, bytes_then in changed:
        file.write_bytes(bytes_then)
        for legacy in (False, True):
            try:
                assert same(load_torch_file(file, what="file", legacy=legacy), CONTENT), (SEED, place, legacy)
                counts["equal"] += 1
            except DamagedError:
                counts["damaged"] += 1
            except InputError as error:
                told.append(str(error))
    assert all("it is left as it is" in line and "\n" not in line for line in told), (SEED, told)
    assert min(*counts.values(), len(told)) > 0, (SEED, counts)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), OSError(errno.EIO, "Input/output error"), NotImplementedError("compression"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), pickle.UnpicklingError("no\nline"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["torch.load", "zipfile.ZipFile.testzip"])
def test_whatever_else_fails_is_not_damage(
    file: Path, error: Exception, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises(InputError, match=r"cannot be read \(.*\); it is left as it is: ") as caught:
        load_torch_file(file, what="checkpoint")
    assert type(caught.value) is InputError
    assert "\n" not in str(caught.value)


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("reads", range(0, 40, 3))
def test_a_signal_passes_through_wherever_it_comes(
    file: Path, error: type[BaseException], reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler raises within a read of the file, also one that torch's own reader asked for."""

    class Interrupted:
        def __init__(self, inner: Any) -> None:
            self.inner, self.left = inner, reads

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __enter__(self) -> "Interrupted":
            return self

        def __exit__(self, *_: object) -> None:
            self.inner.close()

        def readinto(self, buffer: Any) -> Any:
            return self._counted(self.inner.readinto, buffer)

        def read(self, *size: int) -> Any:
            return self._counted(self.inner.read, *size)

        def _counted(self, read: Any, *arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise error
            return read(*arguments)

    fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", lambda number, mode: Interrupted(fdopen(number, mode)))
    with pytest.raises(error):
        load_torch_file(file, what="checkpoint")


class _Program:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_it_is_never_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for zipped in (True, False):
        torch.save({"model": _Program()}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="cannot be read"):
            load_torch_file(file, what="backbone", legacy=True)
    assert "executed" not in capsys.readouterr().out


def test_a_file_without_checksums_is_taken_where_that_is_said(file: Path) -> None:
    torch.save(CONTENT, file, _use_new_zipfile_serialization=False)
    assert same(load_torch_file(file, what="weights", legacy=True), CONTENT)
    with pytest.raises(DamagedError, match="does not begin as torch"):
        load_torch_file(file, what="checkpoint")


def test_links_and_pipes(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.pt").symlink_to(file)
    with pytest.raises(InputError, match=r"link\.pt: a link"):
        load_torch_file(tmp_path / "link.pt", what="checkpoint")
    assert same(load_torch_file(tmp_path / "link.pt", what="weights", own=False), CONTENT)
    os.mkfifo(tmp_path / "pipe.pt")
    for own in (True, False):
        with pytest.raises(InputError, match=r"pipe\.pt: no plain file"):
            load_torch_file(tmp_path / "pipe.pt", what="weights", own=own)
    with pytest.raises(InputError, match=r"weights .*none\.pt cannot be read \(No such file or directory\)"):
        load_torch_file(tmp_path / "none.pt", what="weights", own=False)
