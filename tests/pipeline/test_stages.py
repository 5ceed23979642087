import dataclasses
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.artifacts.fingerprint import fingerprint
from pipeline.config import load_recipe
from pipeline.graph import fingerprint_parts
from pipeline.workflow import workflow
from preprocess.config import SceneSettings, ShardSettings
from train.config.data import DataSettings
from train.config.evals import EvalVocSettings
from train.config.pretrain import PretrainSettings
from train.config.run import RunSettings

WORK = Path("w")


def graph(*overrides: str, work: Path = WORK) -> tuple[stages.Stage, ...]:
    return workflow(load_recipe(None, overrides), work=work)


def prints(*overrides: str, work: Path = WORK, version: str = "1", digest: str = "d") -> dict[str, str]:
    made = graph(*overrides, work=work)
    contents = {stage.name: dict.fromkeys(stage.inputs, digest) for stage in made}
    parts = fingerprint_parts(made, contents=contents, version=version)
    return {name: fingerprint(**part) for name, part in parts.items()}


def redone(*overrides: str, base: tuple[str, ...] = (), **changes: object) -> set[str]:
    before, after = prints(*base), prints(*base, *overrides, **changes)  # type: ignore[arg-type]
    return {name for name in after if before[name] != after[name]}


def test_the_demo_needs_nothing_from_outside() -> None:
    needs = {stage.name: set(stage.needs) for stage in graph()}
    assert needs == {
        "scenes": set(),
        "shards": {"scenes"},
        "preview": {"shards"},
        "val-shards": {"scenes"},
        "pretrain": {"shards"},
        "eval-voc": {"pretrain", "scenes"},
        "eval-frozen": {"pretrain", "scenes", "val-shards"},
    }
    assert not any(stage.inputs for stage in graph())


def test_own_images_and_voc_are_outside_inputs() -> None:
    made = graph("workflow.images=/data/i", "workflow.voc=/data/v")
    assert [stage.name for stage in made] == ["shards", "preview", "pretrain", "eval-voc"]
    assert {s.name: dict(s.inputs) for s in made if s.inputs} == {
        "shards": {"images": Path("/data/i")},
        "eval-voc": {"voc": Path("/data/v")},
    }
    assert [stage.name for stage in graph("workflow.images=/data/i")] == ["shards", "preview", "pretrain"]
    assert {stage.name: stage.needs for stage in graph("workflow.voc=/data/v")}["eval-voc"] == ("pretrain",)


@pytest.mark.parametrize("overrides", [(), ("workflow.images=/i", "workflow.voc=/v"), ("workflow.voc=/v",)])
def test_stages_come_after_their_needs_and_markers_lie_in_outputs(overrides: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for stage in graph(*overrides):
        assert seen.issuperset(stage.needs)
        assert stage.output in (stage.marker, *stage.marker.parents)
        seen.add(stage.name)


def test_a_change_redoes_the_stage_and_what_follows_it_only() -> None:
    own_stages = {"shards", "preview", "pretrain", "eval-voc"}
    everything = {"scenes", "val-shards", "eval-frozen", *own_stages}
    assert redone("scenes.seed=5") == everything
    assert redone("shards.superpixels.segments=50") == everything - {"scenes"}
    assert redone("shards.count=50") == everything - {"scenes", "val-shards"}
    assert redone("pretrain.seed=5") == {"pretrain", "eval-voc", "eval-frozen"}
    assert redone("eval_voc.lr=5") == {"eval-voc"}
    assert redone("eval_frozen.abo.size=5", "eval_frozen.protocols=[abo]") == {"eval-frozen"}
    assert redone("workflow.preview_images=5") == {"preview"}
    assert redone(version="2") == everything
    own = ("workflow.images=/i", "workflow.voc=/v")
    assert redone(base=own, digest="other") == own_stages


def test_where_and_how_wide_it_runs_changes_nothing() -> None:
    assert redone(work=Path("elsewhere")) == set()
    assert redone("workflow.nproc=8", "shards.workers=3", "shards.max_bad_fraction=0.5") == set()
    assert redone("pretrain.run.log_every_steps=7", "pretrain.data.num_workers=0", "eval_voc.num_workers=0") == set()
    own = ("workflow.images=/i", "workflow.voc=/v")
    assert prints(*own) == prints("workflow.images=/other", "workflow.voc=/else")


def test_precision_and_memory_format_change_results() -> None:
    assert redone("pretrain.run.precision=bf16") == {"pretrain", "eval-voc", "eval-frozen"}
    assert redone("pretrain.run.channels_last=true") == {"pretrain", "eval-voc", "eval-frozen"}


def test_what_is_no_content_names_existing_settings() -> None:
    for model in (ShardSettings, SceneSettings, PretrainSettings, DataSettings, RunSettings, EvalVocSettings):
        assert model.model_fields.keys() >= model.NOT_CONTENT
    content = PretrainSettings().content()
    assert content["run"] == {"precision": "fp32", "channels_last": False}
    assert "num_workers" not in content["data"]


def test_paths_reach_the_command_as_one_argument_each() -> None:
    stage = stages.shards_stage(
        ShardSettings(),
        images=Path("-a b'$(x)"),
        shards=Path("s t"),
        options=stages.config_arguments(Path("c d.yaml"), ["shards.seed=1"]),
    )
    assert stage.arguments == ("--images=-a b'$(x)", "--shards=s t", "--config=c d.yaml", "--set=shards.seed=1")


def test_nproc_of_the_config_decides_unless_a_command_gives_another() -> None:
    assert {stage.name: stage for stage in graph("workflow.nproc=3")}["pretrain"].resources.processes == 3
    one, five = (stages.pretrain_stage(PretrainSettings(), shards=WORK, run=WORK, nproc=n) for n in (1, 5))
    assert [stage.resources.processes for stage in (one, five)] == [1, 5]
    assert dataclasses.replace(one, resources=five.resources) == five
