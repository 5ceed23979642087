"""results.json: what is written is what readers find, and what is no such file is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.artifacts.results import Results, Spread, encode_results
from pipeline.foundation.errors import InputError

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


OF_ANOTHER_FORMAT = json.dumps({**MEMBERS, "format_version": 2}).encode()


def test_where_there_is_nothing_there_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Results.read(tmp_path / "results.json") is None
    assert Results.read(tmp_path / "file" / "results.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", OF_ANOTHER_FORMAT])
def test_what_is_no_result_of_this_format_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: no results that this r2o reads; run the evaluation again"):
        Results.read(tmp_path / "results.json")
