"""Each pair of weights and seed is scored once, stored whole, and made again where anything that decides it changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from train.evals.trials import Outcome, Trial, TrialSet, read_stored, remove_outdated
from train.models.backbone_file import ExportedBackbone

BACKBONE = ExportedBackbone(
    name="resnet18", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), fingerprint="run", state_dict={"w": torch.zeros(1)}
)


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
    trials.records(scorer)
    return scorer.scored


def test_every_pair_is_scored_once_and_stored(trials: TrialSet) -> None:
    scorer = Scorer()
    records = trials.records(scorer)
    assert scorer.scored == ["run-seed0", "random-seed0", "run-seed3", "random-seed3"]
    assert {trial.name: record["value"] for trial, record in records.items()} == {
        "run-seed0": 3, "random-seed0": 6, "run-seed3": 33, "random-seed3": 36,
    }  # fmt: skip
    assert trials.records(scorer) == records
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


def test_an_error_leaves_the_trials_before_it(trials: TrialSet) -> None:
    def fails_at_seed_3(trial: Trial) -> Outcome:
        if trial.seed == 3:
            raise KeyboardInterrupt
        return Outcome({"value": 1}, b"")

    with pytest.raises(KeyboardInterrupt):
        trials.records(fails_at_seed_3)
    assert scored_now(trials) == ["run-seed3", "random-seed3"]


def test_results_of_another_fingerprint_go_and_others_stay(trials: TrialSet) -> None:
    results = trials.folder / "results.json"
    results.write_text(json.dumps({"format_version": 1, "fingerprint": trials.fingerprint(report=("a",))}))
    remove_outdated(results, trials.fingerprint(report=("a",)))
    assert read_stored(results) != {}
    remove_outdated(results, trials.fingerprint(report=("b",)))
    assert not results.exists()
    remove_outdated(results, "any")
