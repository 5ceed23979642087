from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.foundation.settings import Settings


class Inner(Settings):
    size: int = 224
    name: str = "é"


def test_it_is_the_hash_of_canonical_json():
    text = b'{"a":[1,2.5,null],"s":{"name":"\\u00e9","size":224}}'
    assert fingerprint(s=Inner(), a=[1, 2.5, None]) == hashlib.sha256(text).hexdigest()


def test_order_does_not_count_but_values_and_names_do():
    base = fingerprint(a={"x": 1, "y": 2}, b=True)
    assert fingerprint(b=True, a={"y": 2, "x": 1}) == base
    assert len({base, fingerprint(a={"x": 1, "y": 3}, b=True), fingerprint(c={"x": 1, "y": 2}, b=True)}) == 3
    assert fingerprint(a=1) != fingerprint(a="1")
    assert fingerprint(a=[1, 2]) != fingerprint(a=[2, 1])


@pytest.mark.processes
def test_another_process_gives_the_same():
    """Whatever its hash seed."""
    program = "from pipeline.artifacts.fingerprint import fingerprint; print(fingerprint(a={'x': 1, 'y': ['é']}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == fingerprint(a={"y": ["é"], "x": 1})


def test_what_is_not_json_is_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        fingerprint(a=float("nan"))
    with pytest.raises(TypeError, match="not JSON serializable"):
        fingerprint(a={1, 2})


def test_differences_name_keys_and_both_values():
    theirs = {"seed": 0, "superpixels": {"segments": 100, "size": 224}, "gone": 1}
    ours = {"seed": 0, "superpixels": {"segments": 50, "size": 224}, "new": None}
    assert differences(ours, theirs) == [
        "gone: 1 → (absent)",
        "new: (absent) → None",
        "superpixels.segments: 100 → 50",
    ]
    assert differences(ours, ours) == []
