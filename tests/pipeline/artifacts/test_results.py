"""results.json: what is written is what readers find; what was changed, and what is no such file, is none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.artifacts.results import Results, Spread, encode_results
from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError

MEMBERS: dict[str, Any] = {
    "format_version": 2,
    "fingerprint": "f",
    "protocol": {"lr": 0.1},
    "backbone": {"name": "resnet18", "run_fingerprint": "r"},
    "classes": ["a", "b"],
    "versions": {"torch": "2"},
    "inits": {"run": {"mean_iou": {"mean": 0.5, "std": None, "n": 1}, "seeds": {"0": {"mean_iou": 0.5}}}},
}


def test_text_keeps_the_order_and_what_an_evaluation_adds(tmp_path: Path) -> None:
    text = encode_results(MEMBERS)
    assert list(json.loads(text)) == [*MEMBERS, "checksum"]
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


OF_ANOTHER_FORMAT = json.dumps(sealed({**MEMBERS, "format_version": 3})).encode()
SEED = 20261127


def test_where_there_is_nothing_there_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert Results.read(tmp_path / "results.json") is None
    assert Results.read(tmp_path / "file" / "results.json") is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000, OF_ANOTHER_FORMAT])
def test_what_is_no_result_of_this_format_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=r"results\.json: no results that this r2o reads; run the evaluation again"):
        Results.read(tmp_path / "results.json")


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, rng = tmp_path / "results.json", random.Random(SEED)
    path.write_text(encode_results(MEMBERS))
    data, expected = path.read_bytes(), Results.read(path)
    refused: list[str] = []
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
        try:
            assert Results.read(path) == expected, (SEED, place)
        except InputError as error:
            refused.append(str(error))
    end = "; run the evaluation again, or move the file away"
    assert all(line.startswith(f"{path}: ") and line.endswith(end) and "\n" not in line for line in refused), refused
    assert len(refused) > len(data) / 2


def test_a_changed_score_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(encode_results(MEMBERS).replace('"mean": 0.5', '"mean": 0.6'))
    with pytest.raises(
        InputError, match=r"results\.json: its checksum does not fit: it was changed after it was written"
    ):
        Results.read(path)


def test_results_of_0_1_0_have_no_checksum_and_those_of_today_must(tmp_path: Path) -> None:
    path, of_then = tmp_path / "results.json", {**MEMBERS, "format_version": 1}
    path.write_text(json.dumps(of_then))
    found = Results.read(path)
    assert found is not None
    assert found.spread("run", "mean_iou") == Spread(0.5, None, 1)
    path.write_text(json.dumps({**of_then, "checksum": "0" * 64}))
    with pytest.raises(InputError, match="checksum does not fit"):
        Results.read(path)
    path.write_text(json.dumps(MEMBERS))
    with pytest.raises(InputError, match="checksum is missing"):
        Results.read(path)


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(encode_results(MEMBERS))
    (tmp_path / "results.json").symlink_to("elsewhere")
    with pytest.raises(InputError, match=r"results\.json: a link"):
        Results.read(tmp_path / "results.json")
