"""The evidence on photographs: the registered rules on made-up results, the commands it runs, and its methods."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.results import read_results_json
from pipeline.artifacts.scores import ImageCounts
from pipeline.foundation.settings import load_settings
from tests.evidence import photographs
from tests.evidence.methods import CONFIG, METHODS, sets_of
from tests.evidence.verdicts import verdict, write_results
from tests.pipeline.report.made_results import write_fine_tuned, write_frozen
from train.config.evals import all_sections
from train.config.pretrain import PretrainSettings


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.02, 0.03, 0.04], "R2O beats BYOL"),  # mean 0.03, standard error 0.0058
        ([-0.02, -0.03, -0.04], "BYOL beats R2O"),
        ([0.001, 0.002, 0.04], "not separated at this budget"),  # mean 0.0143, standard error 0.0128
        ([-0.0001, 0.03, 0.031], "not separated at this budget"),  # mean above twice its error but for the sign
        ([0.02, 0.03], "nothing claimed: 2 of 3 seeds"),
    ],
)
def test_verdicts_are_those_that_were_registered(differences: list[float], expected: str) -> None:
    assert verdict(differences) == expected


def test_results_say_verdicts_parts_and_rankings(tmp_path: Path) -> None:
    shares = {"random": 0.2, "random-bn": 0.1, "byol-seed0": 0.4, "byol-seed1": 0.41, "byol-seed2": 0.42}
    shares |= {"r2o-seed0": 0.5, "r2o-seed1": 0.51, "r2o-seed2": 0.53, "painted-seed0": 0.6, "spatial-seed0": 0.58}
    noise = np.random.default_rng(0).normal(0, 0.02, (30, 2))
    noise -= noise.mean(0)
    for label, share in shares.items():
        kind = {"random": "initial", "random-bn": "data"}.get(label, "weights")
        write_frozen(
            tmp_path / "scores" / label,
            label=label,
            protocol="linear",
            batch_norm=kind,
            counts=ImageCounts("iou", 100 * (share + noise), np.full((30, 2), 100.0)),
            fingerprint=hashlib.sha256(label.encode()).hexdigest(),
        )
    write_fine_tuned(tmp_path / "runs/r2o-seed0/eval-voc/results.json", {"random": {0: 0.3}, "random-bn": {0: 0.2}})
    write_results(tmp_path)
    text = (tmp_path / "results.md").read_text()
    by_seed = "0: +10.00; 1: +10.00; 2: +11.00 | +10.33 | R2O beats BYOL"
    assert by_seed in text
    assert "+2.00 | +3.00 | no difference seen" in text  # painted − spatial, against 50 to 53 of R2O's seeds
    assert "| R2O, seed 0 | yes |" in text.replace("R2O, seed 0 ", "R2O, seed 0 ")
    assert "Kendall's τ" in text


def test_what_is_finished_is_skipped_and_compute_adds_up_over_sittings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, calls = [0, 75, 0, 0], list[str]()

    def stage(argv: list[str]) -> int:
        calls.append(argv[0])
        code = codes.pop(0)
        if argv[0] == "pretrain":
            run = Path(argv[argv.index("--run") + 1])
            run.mkdir(parents=True, exist_ok=True)
            if not code:
                (run / "backbone.pt").write_bytes(b"weights")
        return code

    monkeypatch.setattr(photographs, "r2o", stage)
    asked = ["data", "--work", str(tmp_path), "--methods", "byol", "--seeds", "3", "--parts", "pretrain"]
    assert photographs.main(asked) == 75
    assert photographs.main(asked) == 0
    assert photographs.main(asked) == 0
    assert calls == ["shards", "pretrain", "shards", "pretrain"]
    compute = read_results_json(tmp_path / "runs/byol-seed3/compute.json")
    assert compute is not None
    assert [sitting["exit"] for sitting in compute["sittings"]] == [75, 0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_run_of_the_recipe(method: str) -> None:
    settings = load_settings(PretrainSettings, "pretrain", CONFIG, sets_of(method, 2), all_sections())
    assert settings.seed == 2
    assert settings.epochs == METHODS[method].epochs >= METHODS["r2o"].epochs
    recipe = load_settings(PretrainSettings, "pretrain", CONFIG, (), all_sections())
    same = ("global_batch_size", "augment", "model", "optim")
    assert [getattr(settings, name) for name in same] == [getattr(recipe, name) for name in same]
