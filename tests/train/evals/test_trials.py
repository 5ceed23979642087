"""Each pair of weights and seed is scored once, stored whole, and made again where anything that decides it changes."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artifacts.results import Results, encode_json, encode_results
from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from train.evals import trials as module
from train.evals.trials import Outcome, Trial, TrialSet, remove_outdated
from train.models.backbone_file import ExportedBackbone
from train.models.initial import InitName

BACKBONE = ExportedBackbone(
    name="resnet18", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), fingerprint="run", state_dict={"w": torch.zeros(1)}
)


SEED = 20261127
INITS: tuple[InitName, ...] = ("run", "random", "random-bn")


def is_plain(record: Mapping[str, Any]) -> bool:
    return type(record.get("value")) is int


class Scorer:
    """Counts what is scored."""

    def __init__(self) -> None:
        self.scored: list[str] = []

    def __call__(self, trial: Trial) -> Outcome:
        self.scored.append(trial.name)
        return Outcome({"value": 10 * trial.seed + len(trial.init)}, trial.name.encode())


@pytest.fixture
def trials(tmp_path: Path) -> TrialSet:
    return TrialSet(
        inits=("run", "random"),
        seeds=(0, 3),
        protocol={"lr": 0.1},
        version=1,
        data={"val": "abc"},
        backbone=BACKBONE,
        backbone_sha256="weights",
        folder=tmp_path,
    )


def scored_now(trials: TrialSet) -> list[str]:
    scorer = Scorer()
    trials.records(scorer, fits=is_plain)
    return scorer.scored


def test_every_pair_is_scored_once_and_stored(trials: TrialSet) -> None:
    scorer = Scorer()
    records = trials.records(scorer, fits=is_plain)
    assert scorer.scored == ["run-seed0", "random-seed0", "run-seed3", "random-seed3"]
    assert {trial.name: record["value"] for trial, record in records.items()} == {
        "run-seed0": 3, "random-seed0": 6, "run-seed3": 33, "random-seed3": 36,
    }  # fmt: skip
    assert trials.records(scorer, fits=is_plain) == records
    assert len(scorer.scored) == 4
    assert trials.picture(Trial("random", 3)) == b"random-seed3"


@pytest.mark.parametrize("spoil", ["no picture", "another picture", "half a record", "no record"])
def test_what_is_not_whole_is_made_again_and_nothing_else(trials: TrialSet, spoil: str) -> None:
    scored_now(trials)
    picture, record = trials.folder / "run-seed3.png", trials.folder / "run-seed3.json"
    if spoil == "no picture":
        picture.unlink()
    elif spoil == "another picture":
        picture.write_bytes(b"x")
    elif spoil == "no record":
        record.unlink()
    else:
        record.write_bytes(record.read_bytes()[:40])
    assert scored_now(trials) == ["run-seed3"]
    assert scored_now(trials) == []


def test_only_what_a_change_decides_is_made_again(trials: TrialSet) -> None:
    scored_now(trials)
    other_weights = dataclasses.replace(trials, backbone_sha256="others")
    assert scored_now(other_weights) == ["run-seed0", "run-seed3"]  # random weights are the same
    everything = ["run-seed0", "random-seed0", "run-seed3", "random-seed3"]
    for change in ({"protocol": {"lr": 0.2}}, {"version": 2}, {"data": {"val": "abd"}}):
        assert scored_now(dataclasses.replace(other_weights, **change)) == everything
        scored_now(other_weights)
    assert scored_now(dataclasses.replace(other_weights, seeds=(0, 3, 4))) == ["run-seed4", "random-seed4"]


def test_trials_that_were_stored_before_keep_their_fingerprints_and_random_bn_has_its_own(trials: TrialSet) -> None:
    """Digests of the code before there was "random-bn"."""
    assert {trial.name: trials.fingerprint_of(trial)[:16] for trial in trials.trials} == {
        "run-seed0": "797ab3cf2a102339", "random-seed0": "52ed92f8d58d4398",
        "run-seed3": "d3a2684d20b7ec14", "random-seed3": "85f98257f8036ac6",
    }  # fmt: skip
    assert trials.fingerprint(report_classes=())[:16] == "6c94ce09c2b369e7"
    of = {init: trials.fingerprint_of(Trial(init, 0)) for init in INITS}
    other_weights = dataclasses.replace(trials, backbone_sha256="others")
    assert other_weights.fingerprint_of(Trial("random-bn", 0)) == of["random-bn"]
    assert len({*of.values(), trials.fingerprint_of(Trial("random-bn", 3))}) == 4


def test_the_number_of_images_that_statistics_are_measured_on_decides_about_random_bn_alone(
    trials: TrialSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {init: trials.fingerprint_of(Trial(init, 0)) for init in INITS}
    monkeypatch.setattr(module, "MEASURED_IMAGES", 7)
    changed = {init for init in INITS if trials.fingerprint_of(Trial(init, 0)) != before[init]}
    assert changed == {"random-bn"}


def test_an_error_leaves_the_trials_before_it(trials: TrialSet) -> None:
    def fails_at_seed_3(trial: Trial) -> Outcome:
        if trial.seed == 3:
            raise KeyboardInterrupt
        return Outcome({"value": 1}, b"")

    with pytest.raises(KeyboardInterrupt):
        trials.records(fails_at_seed_3, fits=is_plain)
    assert scored_now(trials) == ["run-seed3", "random-seed3"]


def results_of(path: Path, identity: str) -> bytes:
    members = {
        "format_version": 2, "fingerprint": identity, "protocol": {}, "versions": {}, "inits": {},
        "backbone": {"name": "resnet18", "run_fingerprint": "run"},
    }  # fmt: skip
    path.write_text(encode_results(members))
    return path.read_bytes()


def test_results_that_are_changed_or_of_another_fingerprint_go_and_others_stay(trials: TrialSet) -> None:
    results, identity = trials.folder / "results.json", trials.fingerprint(report=("a",))
    whole = results_of(results, identity)
    remove_outdated(results, identity)
    assert Results.read(results) is not None
    remove_outdated(results, trials.fingerprint(report=("b",)))
    assert not results.exists()
    results.write_bytes(whole.replace(b"resnet18", b"resnet50"))
    remove_outdated(results, identity)
    assert not results.exists()
    remove_outdated(results, "any")
    (trials.folder / "elsewhere").write_bytes(whole)
    results.symlink_to("elsewhere")
    with pytest.raises(InputError, match=r"results\.json: a link"):
        remove_outdated(results, "any")
    assert results.is_symlink()


@pytest.mark.parametrize(
    ("version", "told"),
    [
        (None, "results.json is there, and is no file of results; move it away, or choose another --out"),
        (3, "results.json is of a newer r2o (format 3); go on with that one, or choose another --out"),
    ],
)
def test_results_of_others_and_of_a_newer_r2o_are_left_alone(trials: TrialSet, version: int | None, told: str) -> None:
    path = trials.folder / "results.json"
    head = {} if version is None else {"format_version": version}
    path.write_text(text := encode_json(sealed({**head, "accuracy": [0.5, 0.25]})))
    with pytest.raises(InputError) as caught:
        remove_outdated(path, "any")
    assert str(caught.value) == f"{trials.folder}/{told}"
    assert path.read_text() == text


def test_results_that_were_cut_short_go(trials: TrialSet) -> None:
    path = trials.folder / "results.json"
    path.write_bytes(results_of(path, "any")[:-40])
    remove_outdated(path, "any")
    assert not path.exists()


def test_a_changed_record_is_made_again_or_says_the_same(trials: TrialSet, capsys: pytest.CaptureFixture[str]) -> None:
    scored_now(trials)
    path, rng, told = trials.folder / "run-seed3.json", random.Random(SEED), 0
    data = path.read_bytes()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        path.write_bytes(changed)
        capsys.readouterr()
        if scored_now(trials):
            assert f"{path} was changed after it was written; scored again\n" in capsys.readouterr().err
            assert path.read_bytes() == data, (SEED, place)
            told += 1
        else:
            assert json.loads(changed) == json.loads(data), (SEED, place)
    assert told > len(data) / 2
    path.write_bytes(data.replace(b'"value": 33', b'"value": 34'))
    assert scored_now(trials) == ["run-seed3"]


def of_0_1_0(path: Path, **changes: object) -> None:
    """As release 0.1.0 wrote a record: without a checksum."""
    record = {**json.loads(path.read_bytes()), "format_version": 1, **changes}
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "checksum"}))


def test_a_record_of_0_1_0_is_taken_where_it_fits(trials: TrialSet, capsys: pytest.CaptureFixture[str]) -> None:
    scored_now(trials)
    path = trials.folder / "run-seed3.json"
    of_0_1_0(path)
    before = path.read_bytes()
    assert scored_now(trials) == []
    assert path.read_bytes() == before
    of_0_1_0(path, value="33")
    assert scored_now(trials) == ["run-seed3"]
    assert f"{path} was changed after it was written" in capsys.readouterr().err
    assert json.loads(path.read_bytes())["format_version"] == 2


def test_a_record_of_a_newer_r2o_is_left_alone(trials: TrialSet) -> None:
    scored_now(trials)
    path = trials.folder / "run-seed3.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_bytes()), "format_version": 3})))
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"run-seed3\.json is of a newer r2o \(format 3\)"):
        scored_now(trials)
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["json", "png"])
def test_no_link_is_followed(trials: TrialSet, suffix: str) -> None:
    scored_now(trials)
    path = trials.folder / f"run-seed3.{suffix}"
    path.rename(trials.folder / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(InputError, match=rf"run-seed3\.{suffix}: a link"):
        scored_now(trials)
