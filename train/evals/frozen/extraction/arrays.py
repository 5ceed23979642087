"""The files of one pass: an array a level, written batch by batch by any number of ranks, then named and sealed.

    pass.json           what is being computed; gone at the end
    <array>.npy.part    whole from the start, its rows filled in any order
    done-<rank>.jsonl   a line for every batch that lies there, with the checksums of its rows
    <array>.npy         an array with all its rows
    features.json       written last: what the arrays are, and the checksums

A rank that is killed loses the batches that it has not noted. Noted rows are compared with their checksums before they
count, so that neither a power cut nor a damaged disk leaves wrong ones.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.json_lines import read_lines
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import append_whole, open_own, read_own, refuse_link, write_atomic
from pipeline.foundation.progress import say

FEATURES_NAME, PASS_NAME, FEATURES_FORMAT = "features.json", "pass.json", "r2o.features"
FEATURES_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """Shape and type of an array; its first axis is the images."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.shape[1:])) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Of all images."""
        return self.shape[0] * self.row_bytes


@dataclass(kw_only=True)
class PassFiles:
    """The arrays of one pass in a folder of their own.

    Args:
        fingerprint: of all that decides the values.
        identity: the same in words, for people and other programs.
        batches: the rows of each batch.
    """

    folder: Path
    fingerprint: str
    identity: Mapping[str, Any]
    batches: Sequence[range]
    _unnoted: list[dict[str, Any]] = field(default_factory=list)

    def finished(self) -> dict[str, ArraySpec]:
        """The arrays that are whole, of this fingerprint, and as they were written; the others are said and removed.

        Raises:
            InputError: a file is a link.
        """
        stored = self._stored()
        found = {}
        for name, one in stored.items():
            spec = ArraySpec(shape=tuple(one["shape"]), dtype=one["dtype"])
            if self._is_whole(self.path(name), spec, one["checksums"]):
                found[name] = spec
            else:
                say(f"{self.path(name)} is missing or damaged; computed again")
        if stored and len(found) < len(stored):
            self._seal({name: one for name, one in stored.items() if name in found})
        return found

    def prepare(self, specs: Mapping[str, ArraySpec]) -> list[int]:
        """Make room for arrays that are not there, or take up what a killed pass has left of these very ones.

        Returns:
            the batches that are still to be computed.
        Raises:
            InputError: the disk has no room, or a file is a link.
        """
        refuse_link(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        begun = {"fingerprint": self.fingerprint, "arrays": _plain(specs)}
        done: dict[int, Mapping[str, int]] = {}
        has_room = all(_size(self._part(name)) == _file_size(spec) for name, spec in specs.items())
        if has_room and _read_sealed(self.folder / PASS_NAME) == begun:
            done = self._done(specs)
        if done:
            self._keep_notes(done)
        else:
            self._clear()
            write_atomic(self.folder / PASS_NAME, json.dumps(sealed(begun)) + "\n")
            for name, spec in specs.items():
                _make_room(self._part(name), spec)
        return [batch for batch in range(len(self.batches)) if batch not in done]

    def write(self, batch: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the rows of one batch where they belong; `note` says that they are there."""
        first = self.batches[batch].start
        sums = {}
        for name, values in arrays.items():
            content = np.ascontiguousarray(values)
            descriptor = open_own(self._part(name), os.O_WRONLY)
            try:
                spec = ArraySpec(shape=(self.batches[-1].stop, *content.shape[1:]), dtype=content.dtype.name)
                _write_at(descriptor, content, len(_header(spec)) + first * spec.row_bytes)
            finally:
                os.close(descriptor)
            sums[name] = zlib.crc32(content.data)
        self._unnoted.append({"batch": batch, "checksums": sums})

    def note(self, rank: int) -> None:
        """Append to this rank's file what was written since."""
        if self._unnoted:
            lines = "".join(json.dumps(one) + "\n" for one in self._unnoted)
            append_whole(self.folder / f"done-{rank}.jsonl", lines.encode())
            self._unnoted.clear()

    def finish(self, specs: Mapping[str, ArraySpec]) -> str:
        """Give the arrays their names, and write `features.json`; what only the pass needed is removed. Gives "".

        Raises:
            InputError: rows are missing, because the ranks do not share the folder.
        """
        done = self._done(specs, compare=False)
        if len(done) < len(self.batches):
            raise InputError(
                f"{self.folder}: {len(self.batches) - len(done)} of {len(self.batches)} batches are missing; all ranks "
                "must write into one folder: give --features on a file system that they share"
            )
        stored = self._stored()
        for name, spec in specs.items():
            descriptor = open_own(self._part(name))
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(self._part(name), self.path(name))
            checksums = [done[batch][name] for batch in range(len(self.batches))]
            stored[name] = {"shape": list(spec.shape), "dtype": spec.dtype, "checksums": checksums}
        self._seal(stored)
        self._clear()
        return ""

    def remove(self) -> None:
        """Remove the arrays; the folder too, where nothing else lies in it."""
        for path in (self.folder / FEATURES_NAME, *self.folder.glob("*.npy")):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def open(self, name: str) -> np.ndarray:
        """A finished array as a memory map that cannot be written to."""
        array: np.ndarray = np.load(self.path(name), mmap_mode="r", allow_pickle=False)
        return array

    def path(self, name: str) -> Path:
        """Of a finished array."""
        return self.folder / f"{name}.npy"

    def _part(self, name: str) -> Path:
        return self.folder / f"{name}.npy.part"

    def _seal(self, stored: Mapping[str, Any]) -> None:
        members = {
            "format": FEATURES_FORMAT,
            "format_version": FEATURES_FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            **self.identity,
            "arrays": dict(stored),
        }
        write_atomic(self.folder / FEATURES_NAME, json.dumps(sealed(members)) + "\n")

    def _stored(self) -> dict[str, dict[str, Any]]:
        """What `features.json` says of the arrays; nothing where it is damaged or of another fingerprint."""
        loaded = _read_sealed(self.folder / FEATURES_NAME)
        fits = loaded is not None and loaded.get("fingerprint") == self.fingerprint
        return dict(loaded["arrays"]) if loaded is not None and fits else {}

    def _keep_notes(self, done: Mapping[int, Mapping[str, int]]) -> None:
        """All that counts in one file, so that nothing is appended to a line that was cut short."""
        lines = [json.dumps({"batch": batch, "checksums": sums}) + "\n" for batch, sums in done.items()]
        kept = self.folder / "done-0.jsonl"
        write_atomic(kept, "".join(lines))
        for path in self.folder.glob("done-*.jsonl"):
            if path != kept:
                path.unlink()

    def _done(self, specs: Mapping[str, ArraySpec], *, compare: bool = True) -> dict[int, Mapping[str, int]]:
        """The checksums of every batch that was noted, whose rows have them."""
        noted: dict[int, Mapping[str, int]] = {}
        for path in sorted(self.folder.glob("done-*.jsonl")):
            for line in read_lines(path, fits=lambda line: self._is_note(line, specs)):
                noted[line["batch"]] = line["checksums"]
        if not compare:
            return noted
        arrays = {name: np.load(self._part(name), mmap_mode="r", allow_pickle=False) for name in specs}
        return {b: s for b, s in noted.items() if all(_sum(a, self.batches[b]) == s[n] for n, a in arrays.items())}

    def _is_note(self, line: Mapping[str, Any], specs: Mapping[str, ArraySpec]) -> bool:
        batch, sums = line.get("batch"), line.get("checksums")
        is_batch = isinstance(batch, int) and 0 <= batch < len(self.batches)
        return is_batch and isinstance(sums, dict) and sums.keys() == specs.keys()

    def _is_whole(self, path: Path, spec: ArraySpec, checksums: Sequence[int]) -> bool:
        refuse_link(path)
        if _size(path) != _file_size(spec) or len(checksums) != len(self.batches):
            return False
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = (array.shape, array.dtype.name) == (spec.shape, spec.dtype)
        return fits and all(_sum(array, rows) == one for rows, one in zip(self.batches, checksums, strict=True))

    def _clear(self) -> None:
        """Remove what only a pass needs while it runs, its own mark last."""
        for pattern in ("done-*.jsonl", "*.npy.part", PASS_NAME):
            for path in self.folder.glob(pattern):
                path.unlink()


def batches_of(count: int, size: int) -> list[range]:
    """Indices 0 … count − 1 in runs of `size`, the last one shorter."""
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _plain(specs: Mapping[str, ArraySpec]) -> dict[str, Any]:
    return {name: {"shape": list(spec.shape), "dtype": spec.dtype} for name, spec in specs.items()}


def _read_sealed(path: Path) -> dict[str, Any] | None:
    """A sealed JSON object; None where there is none, or it was changed. Raises InputError where it is a link."""
    try:
        content = read_own(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return unsealed(json.loads(content), required=True)
    except (ValueError, RecursionError):
        return None


def _header(spec: ArraySpec) -> bytes:
    """What a .npy file begins with."""
    buffer = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(spec.dtype)), "fortran_order": False, "shape": spec.shape,
    }  # fmt: skip
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _make_room(path: Path, spec: ArraySpec) -> None:
    """A file of the array's whole size, of zeros, so that a full disk is told of at once."""
    header = _header(spec)
    descriptor = open_own(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none, and finds a full disk later
            os.posix_fallocate(descriptor, 0, len(header) + spec.num_bytes)
        os.ftruncate(descriptor, len(header) + spec.num_bytes)
        os.pwrite(descriptor, header, 0)
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, content: np.ndarray, offset: int) -> None:
    left = content.data.cast("B")
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _sum(array: np.ndarray, rows: range) -> int:
    return zlib.crc32(np.ascontiguousarray(array[rows.start : rows.stop]).data)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _file_size(spec: ArraySpec) -> int:
    return len(_header(spec)) + spec.num_bytes
