"""One entry in EVALUATIONS is all that a new evaluation needs beside its file and its settings."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import cli
from pipeline.config import WorkflowSettings, load_recipe
from pipeline.foundation.errors import InputError
from pipeline.launchers import local
from pipeline.stages import EVALUATIONS, Evaluation, Stage
from pipeline.workflow import workflow
from train.config import evals
from train.config.evals import all_sections, load_evaluation_settings
from train.config.evaluation import EvaluationSettings
from train.config.frozen import FROZEN_PROTOCOLS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Evaluation:
    class EvalXSettings(EvaluationSettings):
        SECTION: ClassVar[str] = "eval_x"
        rounds: int = 3

    entry = Evaluation(
        name="x", title="X", module="train.evals.x", settings=EvalXSettings, help="a made-up one", data="X's folder"
    )
    monkeypatch.setitem(EVALUATIONS, "x", entry)
    monkeypatch.setattr(evals, "EvalXSettings", EvalXSettings, raising=False)
    return entry


def test_one_entry_makes_verb_option_section_and_stage(
    made_up: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Stage] = []
    monkeypatch.setattr(local, "start", lambda stage: started.append(stage) or 0)
    config = tmp_path / "x.yaml"
    config.write_text("eval_x: {rounds: 5}\neval_voc: {lr: 0.5}")
    assert cli.main(["eval-x", "--run=r", "--x=d", f"--config={config}", "--set", "eval_x.rounds=7"]) == 0
    (stage,) = started
    assert (stage.name, stage.module, stage.output) == ("eval-x", "train.evals.x", Path("r/eval-x"))
    assert stage.arguments == ("--run=r", "--x=d", f"--config={config}", "--set=eval_x.rounds=7")
    assert stage.settings == {"rounds": 7}
    assert stage.marker == Path("r/eval-x/results.json")


def test_one_entry_makes_a_stage_of_the_workflow_where_data_is_named(made_up: Evaluation) -> None:
    with_data = workflow(load_recipe(None, ["workflow.x=/data/x"]), work=Path("w"))
    assert [stage.name for stage in with_data][-4:] == ["pretrain", "eval-voc", "eval-x", "eval-frozen"]
    assert dict(with_data[-2].inputs) == {"x": Path("/data/x")}
    assert with_data[-2].needs == ("pretrain",)
    assert "eval-x" not in {stage.name for stage in workflow(load_recipe(), work=Path("w"))}


def test_without_the_entry_its_section_verb_and_setting_are_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    for override in ("eval_x.rounds=7", "workflow.x=/data/x"):
        with pytest.raises(InputError, match="unknown"):
            load_recipe(None, [override])
    assert cli.main(["eval-x", "--run=r", "--x=d"]) == 2
    assert "invalid choice: 'eval-x'" in capsys.readouterr().err


def test_an_evaluation_by_itself_refuses_a_section_that_no_evaluation_has(made_up: Evaluation, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("eval_x: {rounds: 5}\neval_voc: {lr: 0.5}")
    assert load_evaluation_settings(made_up.settings, config).model_dump() == {"rounds": 5}
    config.write_text("eval_xx: {rounds: 5}")
    with pytest.raises(InputError, match="unknown section 'eval_xx'; did you mean 'eval_x'"):
        load_evaluation_settings(made_up.settings, config)


def test_entries_agree_with_their_settings_and_files() -> None:
    for name, evaluation in EVALUATIONS.items():
        assert evaluation.name == name
        assert evaluation.verb == f"eval-{name}"
        assert f"eval_{name}" == evaluation.settings.SECTION
        assert evaluation.module == f"train.evals.{name}"


def test_make_offers_the_evaluations_that_there_are() -> None:
    files = {path.stem for path in (ROOT / "train" / "evals").glob("*.py")}
    assert files - {"__init__", "trials"} == set(EVALUATIONS)
    assert "filter-out __init__ trials," in (ROOT / "Makefile").read_text()


def test_sections_of_the_settings_are_those_of_the_table() -> None:
    sections = [evaluation.settings.SECTION for evaluation in EVALUATIONS.values()]
    assert all_sections() == ("scenes", "shards", "pretrain", "eval_frozen", *sections, "workflow")


def test_a_name_that_is_taken_makes_no_evaluation(made_up: Evaluation) -> None:
    for name in (*WorkflowSettings.model_fields, "run", "config", "set", "path", "Voc", "a-b", ""):
        with pytest.raises(AssertionError):
            dataclasses.replace(made_up, name=name)


def started_by(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Stage:
    started: list[Stage] = []
    monkeypatch.setattr(local, "start", lambda stage: started.append(stage) or 0)
    assert cli.main(argv) == 0
    (stage,) = started
    return stage


def test_frozen_features_are_scored_by_all_protocols_or_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["--weights=w.pth", "--data", "d1", "d2", "--format=timm", "--out=o", "--nproc=2", "--drop-features"]
    stage = started_by(
        monkeypatch, "eval-frozen", *given, "--protocols=knn,abo", "--set", "eval_frozen.knn.k=[5]"
    )  # fmt: skip
    assert stage.module == "train.evals.frozen.score"
    assert stage.arguments == (
        "--weights=w.pth", "--data=d1", "--data=d2", "--format=timm", "--protocols=knn,abo", "--out=o",
        "--drop-features", "--set=eval_frozen.knn.k=[5]",
    )  # fmt: skip
    assert (stage.output, stage.marker) == (Path("o"), Path("o/summary.json"))
    assert stage.resources.processes == 2
    assert stage.settings["knn"]["k"] == [5]
    for name in FROZEN_PROTOCOLS:
        one = started_by(monkeypatch, f"eval-{name}", "--weights=random", "--backbone=resnet18", "--data=d")
        assert one.arguments == ("--weights=random", "--data=d", "--backbone=resnet18", f"--protocols={name}")


def test_features_are_written_for_any_images(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = started_by(
        monkeypatch, "features", "--weights=w", "--data=d", "--out=o", "--size=448", "--levels", "c4", "pooled"
    )
    assert stage.module == "train.evals.frozen.features"
    assert stage.arguments == ("--weights=w", "--data=d", "--out=o", "--size=448", "--levels=c4,pooled")


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["eval-frozen", "--data=d"], "--weights"),
        (["eval-frozen", "--weights=w"], "--data"),
        (["eval-linear", "--weights=w", "--data=d", "--protocols=knn"], "unrecognized arguments: --protocols"),
        (["eval-knn", "--weights=w", "--data=d", "--set", "eval_frozen.knn.kk=1"], "unknown key 'eval_frozen.knn.kk'"),
        (["features", "--weights=w", "--data=d", "--out=o", "--levels", "c6"], "c6"),
    ],
)
def test_mistakes_of_the_command_line_are_named(
    argv: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == 2
    assert match in capsys.readouterr().err


def test_names_of_protocols_are_no_names_of_evaluations() -> None:
    assert not {*FROZEN_PROTOCOLS, "frozen"} & set(EVALUATIONS)
