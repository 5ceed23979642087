"""results.json: what is written is what readers find, and what is no such file is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.artifacts.results import Results, Spread, encode_results

MEMBERS: dict[str, Any] = {
    "format_version": 1,
    "fingerprint": "f",
    "protocol": {"lr": 0.1},
    "backbone": {"name": "resnet18", "run_fingerprint": "r"},
    "classes": ["a", "b"],
    "versions": {"torch": "2"},
    "inits": {"run": {"mean_iou": {"mean": 0.5, "std": None, "n": 1}, "seeds": {"0": {"mean_iou": 0.5}}}},
}


def test_text_keeps_the_order_and_what_an_evaluation_adds(tmp_path: Path) -> None:
    text = encode_results(MEMBERS)
    assert list(json.loads(text)) == list(MEMBERS)
    (tmp_path / "results.json").write_text(text)
    found = Results.read(tmp_path / "results.json")
    assert found is not None
    assert found.spread("run", "mean_iou") == Spread(0.5, None, 1)
    assert found.backbone.run_fingerprint == "r"
    assert found.model_dump()["classes"] == ["a", "b"]
    with pytest.raises(KeyError):
        found.spread("run", "no such score")


@pytest.mark.parametrize("missing", [name for name in MEMBERS if name != "classes"])
def test_members_that_readers_rely_on_must_be_there(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        encode_results({name: value for name, value in MEMBERS.items() if name != missing})


def test_numbers_that_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_results({**MEMBERS, "protocol": {"lr": float("nan")}})


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b"{}", json.dumps({**MEMBERS, "format_version": 2}).encode()]
)
def test_what_is_no_result_of_this_format_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    assert Results.read(tmp_path / "results.json") is None
