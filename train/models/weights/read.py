"""What a file of weights holds, told by its first bytes, not by its name. No code in it is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pipeline.artifacts.run_files import BACKBONE_NAME
from pipeline.foundation.errors import InputError
from train.models.formats import DIGEST, sha256_of_weights
from train.models.torch_file import SHOWN, ZIP_BEGINS, DamagedError, load_torch_file
from train.models.weights.pickles import (
    LEGACY_MAGIC,
    NPY_BEGINS,
    InertUnpickler,
    read_npy_object,
    read_pickle,
    read_torch_legacy,
    read_torch_zip,
)

READS = ".pth, .pt, .ckpt, .pth.tar, .bin, .torch, .safetensors, .pkl or .npz"
_SAFETENSORS_RAISES = (OSError, RuntimeError, LookupError, ValueError, SafetensorError)
_NO_WEIGHTS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself; `git lfs pull` fetches it",
    b"<": "is a page of a website, not the file itself; download it again, by its direct link",
    b"\x1f\x8b": "is compressed by gzip; unpack it first",
    b"\x89HDF": "is HDF5, of Keras or another library; convert it to a .pth of PyTorch's first",
    b"BZh": "is compressed by bzip2; unpack it first",
}


def weights_file(path: Path) -> Path:
    """The file itself, or the backbone of the run whose folder is named. Raises InputError where there is none."""
    if path.is_dir():
        if (path / BACKBONE_NAME).is_file():
            return path / BACKBONE_NAME
        raise InputError(
            f"{path}: a folder without {BACKBONE_NAME}; name a file of weights, or a run that `make pretrain` finished"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file; give weights as {READS}")
    return path


def read_weights_file(path: Path) -> Any:
    """The content of a file: nested dicts and lists of tensors, arrays and plain values; other objects are inert.

    Raises:
        DamagedError: a checksum does not fit, or its end is missing.
        InputError: no form that is read, or it cannot be read; one line says which.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InputError(f"{path} is empty; download or save it again")
    for begins, what in _NO_WEIGHTS.items():
        if head.lstrip().startswith(begins):
            raise InputError(f"{path} {what}")
    return _reader_of(path, head)(path)


def _reader_of(path: Path, head: bytes) -> Callable[[Path], Any]:
    if head.startswith(ZIP_BEGINS):
        return _read_npz if _is_npz(path) else _read_torch
    if head.startswith(NPY_BEGINS):
        return lambda path: _guarded(path, read_npy_object)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors
    if head.startswith(b"\x80"):
        return _read_torch if _is_torch_legacy(path) else lambda path: _guarded(path, read_pickle)
    raise InputError(f"{path} is not a file of weights (it begins with {head[:8]!r}); give weights as {READS}")


def _is_npz(path: Path) -> bool:
    # What cannot be listed is left to the reader of the other form, which says what is wrong with it.
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _is_torch_legacy(path: Path) -> bool:
    """By its first pickle, a number."""
    with path.open("rb") as file:
        head = io.BytesIO(file.read(64))
    try:
        return bool(InertUnpickler(head).load() == LEGACY_MAGIC)
    except Exception:  # bytes of anybody's: a pickle that is damaged may raise anything
        return False


def _read_torch(path: Path) -> Any:
    """As torch.load does with `weights_only`; where the file names other classes, by our own reader.

    Checksums have been compared by then.
    """
    try:
        return load_torch_file(path, what="weights", own=False, legacy=True)
    except DamagedError:
        raise
    except InputError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        with path.open("rb") as file:
            reader = read_torch_zip if file.read(len(ZIP_BEGINS)) == ZIP_BEGINS else read_torch_legacy
        return _guarded(path, reader)


def _guarded(path: Path, reader: Callable[[IO[bytes]], Any]) -> Any:
    try:
        with path.open("rb") as file:
            return reader(file)
    except EOFError:
        raise DamagedError(f"weights {path} is damaged (its end is missing): download or save it again") from None
    except Exception as error:  # a pickle of anybody's may raise anything; none of it was run
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    why = f"{type(error).__name__}: {error}".partition("\n")[0][:SHOWN]
    return InputError(f"{path} is not a file of weights ({why})")


def _read_npz(path: Path) -> Any:
    """Plain arrays alone: `allow_pickle=False`. The archive's checksums are compared on the way."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except zipfile.BadZipFile as error:
        raise DamagedError(f"weights {path} is damaged ({str(error)[:SHOWN]}): download or save it again") from None
    except Exception as error:  # a header of anybody's may make NumPy raise anything
        raise _unreadable(path, error) from None


def _read_safetensors(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get(DIGEST)
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no dict
    except _SAFETENSORS_RAISES as error:
        raise _unreadable(path, error) from None
    if digest is not None and digest != sha256_of_weights(weights):
        raise DamagedError(f"{path}: its checksum does not fit: it was changed after it was written; export it again")
    return weights
