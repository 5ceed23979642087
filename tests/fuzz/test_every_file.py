"""Every file that is read, changed in every way: the same content comes out, or one line says what is wrong.

`make fuzz N=5000 SEED=7` changes each more often.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.foundation.errors import InputError
from tests.fuzz.mutations import mutations
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS
from train.run import folder

COUNT, SEED = int(os.environ.get("R2O_FUZZ") or 180), int(os.environ.get("R2O_FUZZ_SEED") or 0)


def plain(value: Any) -> bytes:
    """What a reader gave, so that it can be compared: tensors by their bytes."""
    if isinstance(value, torch.Tensor):
        value = (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    elif isinstance(value, np.ndarray):
        value = (str(value.dtype), value.shape, value.tobytes())
    elif isinstance(value, dict):
        value = sorted((repr(key), plain(one)) for key, one in value.items())
    elif isinstance(value, list | tuple):
        value = [plain(one) for one in value]
    return pickle.dumps(value if isinstance(value, list | tuple | bytes) else repr(value))


def fault(target: Target, content: bytes) -> str | None:
    """What is wrong with what a reader makes of the changed file: None, or "" where it was refused."""
    try:
        found = target.read()
    except InputError as error:
        told = str(error)
        return "" if "\n" not in told and target.path.name in told else f"told as {told!r}"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return None if target.is_users or plain(found) == content else "other content was taken for what was written"


@pytest.mark.parametrize("make", TARGETS, ids=lambda make: make.__name__)
def test_a_changed_file_is_the_same_content_or_one_line(
    make: Callable[..., Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shallow: None
) -> None:
    monkeypatch.setenv("R2O_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder, "_git_commit", lambda: None)  # it starts a process
    target = make(tmp_path)
    written, content = target.path.read_bytes(), plain(target.read())
    ends: dict[str, str | None] = {}
    for data, what in mutations(written, count=COUNT, seed=SEED):
        target.path.write_bytes(data)
        ends[what] = fault(target, content)
    target.path.write_bytes(written)
    faults = [f"{what}: {found}" for what, found in ends.items() if found]
    assert not faults, f"seed {SEED}: {len(faults)} of {COUNT} changes: " + "\n".join(faults[:10])
    refused = sum(found == "" for found in ends.values())
    assert refused > COUNT / 4, f"seed {SEED}: only {refused} of {COUNT} changes were noticed"
    assert plain(target.read()) == content
