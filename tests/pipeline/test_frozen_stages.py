"""Frozen features within `r2o run`: on which images they are scored, and whose superpixels ABO gets."""

import shutil
from pathlib import Path

import pytest

from pipeline.config import load_recipe
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import load_settings
from pipeline.graph import run_stages, verdicts
from pipeline.stages import Stage
from pipeline.workflow import workflow
from preprocess.config import ShardSettings
from train.config.evals import load_evaluation_settings
from train.config.frozen import EvalFrozenSettings

VOC = "scenes/VOCdevkit/VOC2012"


def graph(*overrides: str, work: Path = Path("w"), config: Path | None = None) -> dict[str, Stage]:
    options = (*([f"--config={config}"] if config else []), *(f"--set={one}" for one in overrides))
    return {stage.name: stage for stage in workflow(load_recipe(config, overrides), work=work, options=options)}


def overrides_of(stage: Stage) -> list[str]:
    return [one.removeprefix("--set=") for one in stage.arguments if one.startswith("--set=")]


def test_scenes_are_scored_with_superpixels_of_their_own() -> None:
    stages = graph("eval_frozen.linear.num_c=3")
    frozen, shards = stages["eval-frozen"], stages["val-shards"]
    assert [*stages][3:] == ["val-shards", "pretrain", "eval-voc", "eval-frozen"]
    assert frozen.arguments[:2] == ("--weights=w/pretrain", f"--data=w/{VOC}")
    assert frozen.needs == ("pretrain", "scenes", "val-shards")
    assert frozen.marker == Path("w/pretrain/eval-frozen/summary.json")
    assert frozen.settings["linear"]["num_c"] == 3
    assert shards.arguments[:2] == (f"--images=w/{VOC}/JPEGImages", "--shards=w/val-shards")
    assert (shards.module, shards.marker) == ("preprocess.make_shards", Path("w/val-shards/manifest.json"))
    assert shards.needs == ("scenes",)
    assert not frozen.inputs
    assert not shards.inputs


def test_the_commands_have_the_settings_that_the_graph_compares(tmp_path: Path) -> None:
    config = tmp_path / "odd.yaml"
    config.write_text(
        "shards: {count: 5, seed: 3, source: {format: tar, names: /n, classes: /c}, superpixels: {segments: 9}}\n"
        "eval_frozen: {abo: {size: 64}}\n"
    )
    work = tmp_path / "0x10: [a b] #ü"
    stages = graph("shards.quality=80", work=work, config=config)
    shards = stages["val-shards"]
    made = load_settings(ShardSettings, "shards", config, overrides_of(shards))
    assert made.content() == dict(shards.settings)
    assert (made.count, made.seed, made.quality, made.superpixels.segments) == (None, 3, 80, 9)  # type: ignore[union-attr]
    assert (made.source.format, made.source.names, made.source.classes) == ("folder", None, None)
    frozen = stages["eval-frozen"]
    scored = load_evaluation_settings(EvalFrozenSettings, config, overrides_of(frozen))
    assert (scored.abo.superpixels, scored.abo.size) == (str(work / "val-shards"), 64)
    assert frozen.settings["abo"]["superpixels"] is None  # a path decides nothing; the stage that it needs does


def test_without_abo_or_with_other_shards_none_are_made() -> None:
    for given in ("eval_frozen.protocols=[linear, knn]", "eval_frozen.abo.superpixels=/mine"):
        stages = graph(given)
        assert "val-shards" not in stages
        assert stages["eval-frozen"].arguments == ("--weights=w/pretrain", f"--data=w/{VOC}", f"--set={given}")
    assert "val-shards" in graph("eval_frozen.protocols=[linear, abo]")


def test_own_images_are_scored_where_a_folder_is_named() -> None:
    assert "eval-frozen" not in graph("workflow.images=/i")
    for images in ((), ("workflow.images=/i",)):
        stages = graph(*images, "workflow.frozen=/data/voc")
        assert "val-shards" not in stages
        frozen = stages["eval-frozen"]
        assert frozen.arguments[:2] == ("--weights=w/pretrain", "--data=/data/voc")
        assert not [one for one in overrides_of(frozen) if "superpixels" in one]
        assert (frozen.needs, dict(frozen.inputs)) == (("pretrain",), {"data": Path("/data/voc")})


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_own_voc_gets_superpixels_where_they_are_asked_for(tmp_path: Path, below: str) -> None:
    images = tmp_path / below / "JPEGImages"
    images.mkdir(parents=True)
    stages = graph("workflow.images=/i", f"workflow.frozen={tmp_path}", "workflow.frozen_superpixels=true")
    shards, frozen = stages["val-shards"], stages["eval-frozen"]
    assert (shards.needs, dict(shards.inputs)) == ((), {"images": images})
    assert (frozen.needs, dict(frozen.inputs)) == (("pretrain", "val-shards"), {"data": tmp_path})


def test_superpixels_of_what_is_no_voc_are_refused_in_one_line(tmp_path: Path) -> None:
    asked = ("workflow.frozen_superpixels=true", f"workflow.frozen={tmp_path}")
    with pytest.raises(InputError, match=r"workflow\.frozen_superpixels: .* has no JPEGImages") as caught:
        graph(*asked)
    assert "\n" not in str(caught.value)
    assert "val-shards" not in graph(*asked, "eval_frozen.protocols=[knn]")


def test_changed_images_or_shards_redo_superpixels_and_scores_alone(tmp_path: Path) -> None:
    voc, work, started = tmp_path / "voc", tmp_path / "work", list[str]()
    for folder in (tmp_path / "images", voc / "JPEGImages", voc / "SegmentationClass"):
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"1")

    def start(stage: Stage) -> int:
        started.append(stage.name)
        stage.marker.parent.mkdir(parents=True, exist_ok=True)
        stage.marker.write_text("done")
        return 0

    def run(*more: str) -> list[str]:
        started.clear()
        given = (f"workflow.images={tmp_path / 'images'}", f"workflow.frozen={voc}", *more)
        stages = [*graph(*given, "workflow.frozen_superpixels=true", work=work).values()]
        assert run_stages(stages, work=work, version="1", start=start) == 0
        assert {one.action for one in verdicts(stages, work=work, version="1").values()} == {"skip"}
        return [*started]

    assert run() == ["shards", "preview", "val-shards", "pretrain", "eval-frozen"]
    assert run() == []
    (voc / "JPEGImages" / "b").write_bytes(b"2")
    assert run() == ["val-shards", "eval-frozen"]
    (voc / "SegmentationClass" / "a").write_bytes(b"23")
    assert run() == ["eval-frozen"]
    assert run("shards.superpixels.segments=7") == ["shards", "preview", "val-shards", "pretrain", "eval-frozen"]
    kept = {path.name.rpartition("-")[0] for path in (work / ".r2o" / "replaced").iterdir()}
    assert {"val-shards", "shards"} <= kept
    shutil.rmtree(work / "val-shards")
    assert run("shards.superpixels.segments=7") == ["val-shards"]
