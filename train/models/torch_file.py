"""What torch.save wrote, read back: never as code, and not before its checksums have been compared."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_own

ZIP_BEGINS = b"PK\x03\x04"  # by which torch.load, too, tells its files from those of before torch 1.6
SHOWN = 120  # characters of what a library says


class DamagedError(InputError):
    """A file is not what was once written: a checksum does not fit, or its end is missing."""


def load_torch_file(path: Path, *, what: str, own: bool = True, legacy: bool = False) -> Any:
    """What torch.save wrote, on the CPU. No code in it is run. A signal that raises passes through.

    Args:
        what: names it in messages, as in "checkpoint".
        own: r2o keeps the file, so that it may be no link; a file of the user's may be one.
        legacy: also take the form of before torch 1.6, which has no checksums.
    Raises:
        DamagedError: a checksum does not fit, or the end of the file is missing.
        InputError: it cannot be read, for whatever other reason, and may well be whole.
    """
    try:
        with os.fdopen(open_own(path if own else path.resolve()), "rb") as file:
            if not legacy or _begins_as_zip(file):
                _compare_checksums(file)
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise DamagedError(
            f"{what} {path} is damaged ({str(error)[:SHOWN]}): it was changed or cut short after it was written"
        ) from error
    except Exception as error:  # no memory, a disk that fails, a torch that reads other forms: none is damage
        why = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise InputError(
            f"{what} {path} cannot be read ({why.partition(chr(10))[0][:SHOWN]}); it is left as it is: put that right "
            "and run the same command again, or name another file"
        ) from error


def _begins_as_zip(file: BinaryIO) -> bool:
    begins = file.read(len(ZIP_BEGINS)) == ZIP_BEGINS
    file.seek(0)
    return begins


def _compare_checksums(file: BinaryIO) -> None:
    """Compare every member's CRC-32, chunk by chunk, which torch.load does not; the file is at its beginning after.

    Raises:
        zipfile.BadZipFile: one does not fit, or this is no archive, or not to its end.
    """
    if not _begins_as_zip(file):
        raise zipfile.BadZipFile("it does not begin as torch.save begins one")
    with zipfile.ZipFile(file) as archive:
        if (wrong := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"checksum of {wrong}")
    file.seek(0)
