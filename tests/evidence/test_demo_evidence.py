"""The evidence of the demo, on results that were made up."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.scores import ImageCounts
from pipeline.states import StageState, write_state
from tests.evidence import demo
from tests.pipeline.report.made_results import write_run

GAINS = {"seed-1": 0.2, "seed-2": 0.25}  # of the run over random weights, by the folder of the seed


def counts(share: float, *, images: int = 30) -> ImageCounts:
    noise = np.random.default_rng(0).normal(0, 0.02, (images, 2))
    return ImageCounts("iou", 100 * (share + noise), np.full((images, 2), 100.0))


class Workflow:
    """Stands for `r2o run`: leaves made-up results."""

    def __init__(self, gains: dict[str, float]) -> None:
        self.gains, self.calls, self.fails = gains, list[list[str]](), dict[str, int]()

    def __call__(self, argv: list[str]) -> int:
        self.calls.append(argv)
        work = Path(argv[argv.index("--work") + 1])
        if code := self.fails.get(work.name):
            return code
        if not work.exists():
            seed = int(work.name.rpartition("-")[2])
            rows = {"pretrain": 0.5 + self.gains[work.name], "random": 0.5, "random-bn": 0.4}
            write_run(
                work / "pretrain",
                {label: [counts(share)] for label, share in rows.items()},
                abo={"pretrain": ImageCounts("mean", np.full(30, 0.625), np.ones(30))},
                references={"slic_prior": ImageCounts("mean", np.full(30, 0.375), np.ones(30))},
                fine_tuned={"run": 0.25, "random": 0.75},
                first_seed=seed,
            )
            (work / ".r2o").mkdir()
            state = StageState(
                stage="pretrain", status="finished", fingerprint="a" * 64, parts={}, command=("x",), seconds=61.7
            )
            write_state(work, state)
        return 0


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workflow:
    made = Workflow(dict(GAINS))
    monkeypatch.setattr(demo, "r2o", made)
    monkeypatch.setattr(demo, "_git", lambda *arguments: "c0ffee" if arguments[0] == "rev-parse" else "")
    (tmp_path / "tiny.yaml").write_text("eval_frozen: {protocols: [linear, abo]}")
    return made


def call(tmp_path: Path, *more: str) -> int:
    return demo.main([f"--config={tmp_path / 'tiny.yaml'}", f"--work={tmp_path / 'work'}", "--seeds", "1", "2", *more])


def test_every_seed_has_its_folder_and_decides_all_that_is_drawn(run: Workflow, tmp_path: Path) -> None:
    assert call(tmp_path) == 0
    assert run.calls == [
        [
            "run", str(tmp_path / "tiny.yaml"), "--work", str(tmp_path / "work" / f"seed-{seed}"), "--set",
            f"scenes.seed={seed}", f"pretrain.seed={seed}", f"eval_frozen.linear.seeds=[{seed}]",
            f"eval_frozen.abo.seeds=[{seed}]", f"eval_voc.seeds=[{seed}]",
        ]
        for seed in (1, 2)
    ]  # fmt: skip
    first = (tmp_path / "work" / "evidence.json").read_bytes()
    assert call(tmp_path) == 0
    assert (tmp_path / "work" / "evidence.json").read_bytes() == first


def test_figures_are_those_of_the_results(run: Workflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call(tmp_path)
    stored = json.loads((tmp_path / "work" / "evidence.json").read_bytes())
    assert (stored["commit"], stored["dirty"], stored["resamples"]) == ("c0ffee", False, 2000)
    assert [one["seed"] for one in stored["seeds"]] == [1, 2]
    for one, gain in zip(stored["seeds"], GAINS.values(), strict=True):
        noise = float(counts(0).value.mean()) / 100
        assert one["rows"]["run"] == pytest.approx({"linear": 0.5 + gain + noise, "abo": 0.625, "voc": 0.25})
        assert one["rows"]["random"] == pytest.approx({"linear": 0.5 + noise, "voc": 0.75})
        assert one["references"] == pytest.approx({"SLIC prior": 0.375})
        # every image gains the same, so that every resample does
        assert one["differences"]["random"] == pytest.approx(dict.fromkeys(("difference", "low", "high"), gain))
        assert one["differences"]["random-bn"]["low"] == pytest.approx(gain + 0.1)
        assert one["beats_both"] is True
        assert one["seconds"]["pretrain"] == 61.7
    text = (tmp_path / "work" / "evidence.md").read_text()
    assert "Commit c0ffee; " in text
    assert "Pretrained at another commit: none." in text
    assert "| 2 | +25.00 \\[+25.00, +25.00\\] | +35.00 \\[+35.00, +35.00\\] | yes |" in text
    assert "| 1 | SLIC prior |  | 37.50 |  |" in text
    assert "| pretrain | 62 | 62 |" in text
    assert "+20.00 [+20.00, +20.00]" in capsys.readouterr().out


@pytest.mark.parametrize("gain", [0.0, -0.05])
def test_one_seed_that_does_not_beat_both_fails_it(run: Workflow, tmp_path: Path, gain: float) -> None:
    run.gains["seed-1"] = gain
    assert call(tmp_path) == 1
    assert [one["beats_both"] for one in json.loads((tmp_path / "work" / "evidence.json").read_bytes())["seeds"]] == [
        False, True,
    ]  # fmt: skip


def test_a_missing_rival_is_not_beaten(run: Workflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RIVALS", (*demo.RIVALS, "random-other"))
    assert call(tmp_path) == 1


def test_a_stage_that_fails_ends_it_with_its_code_and_what_was_found_stays(run: Workflow, tmp_path: Path) -> None:
    run.fails["seed-2"] = 75
    assert call(tmp_path) == 75
    assert len(json.loads((tmp_path / "work" / "evidence.json").read_bytes())["seeds"]) == 1
    run.fails.clear()
    assert call(tmp_path) == 0
    assert len(json.loads((tmp_path / "work" / "evidence.json").read_bytes())["seeds"]) == 2


@pytest.mark.processes
def test_the_machine_is_named() -> None:
    found = demo.machine_of_evidence()
    assert found["cores"] >= 1
    assert found["torch"][0].isdecimal()
    assert found["cpu"] is not None


def test_the_scored_seeds_and_the_config_are_those_of_the_demo() -> None:
    assert demo.SCORED_SEEDS == (1, 2, 3)
    recipe = demo.load_recipe(demo.ROOT / "configs" / "demo.yaml", demo.overrides_of(7))
    assert (recipe.scenes.seed, recipe.pretrain.seed, recipe.frozen.linear.seeds) == (7, 7, (7,))
    assert (recipe.frozen.abo.seeds, recipe.evaluations["voc"].seeds) == ((7,), (7,))  # type: ignore[attr-defined]
    assert recipe.frozen.protocols == ("linear", "abo")
    assert recipe.evaluations["voc"].inits == ("run", "random", "random-bn")  # type: ignore[attr-defined]
