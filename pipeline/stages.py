"""The stage graph as data: what each stage is called, starts, reads, writes and needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.manifest import MANIFEST_NAME
from pipeline.artifacts.run_files import BACKBONE_NAME, PANELS_FOLDER, PREDICTIONS_NAME, RESULTS_NAME, evaluation_folder
from pipeline.config import Recipe


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a stage takes of a machine: processes, and CPU threads each (None: cores / processes)."""

    processes: int = 1
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One verb of the workflow.

    Args:
        module: what `python -m` starts, with `arguments`.
        inputs: folders it reads that no stage of the graph makes, by option name.
        output: the folder or file that is wholly this stage's.
        marker: the file that is written last, so its existence means "complete".
        settings: the settings that decide the result, as plain values.
        needs: stages whose outputs it reads.
        shows: (what, path) pairs for people to look at.
        reconciles: after a change it finds by itself what of its former output still holds, and replaces the rest.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    output: Path
    marker: Path
    inputs: Mapping[str, Path]
    settings: Mapping[str, Any]
    needs: tuple[str, ...] = ()
    resources: Resources = Resources()
    shows: tuple[tuple[str, Path], ...] = ()
    reconciles: bool = False


def config_arguments(config: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """`--config F` and `--set section.key=value` as every stage command takes them."""
    return (*([f"--config={config}"] if config else []), *(f"--set={override}" for override in overrides))


def scenes_stage(recipe: Recipe, *, out: Path, options: tuple[str, ...] = ()) -> Stage:
    """Generate the embedded scenes: class folders under `out`/images and a VOC2012 layout."""
    return Stage(
        name="scenes",
        module="preprocess.scenes",
        arguments=(f"--out={out}", *options),
        output=out,
        marker=out / "scenes.json",
        inputs={},
        settings=recipe.scenes.model_dump(mode="json"),
    )


def shards_stage(recipe: Recipe, *, images: Path | str, shards: Path | str, options: tuple[str, ...] = ()) -> Stage:
    """Images to superpixel shards. Ray gives each of its tasks one core, hence one thread."""
    return Stage(
        name="shards",
        module="preprocess.make_shards",
        arguments=(f"--images={images}", f"--shards={shards}", *options),
        output=Path(shards),
        marker=Path(shards) / MANIFEST_NAME,
        inputs={"images": Path(images)},
        settings=recipe.shards.content(),
        resources=Resources(threads=1),
        shows=(("superpixel shards", Path(shards)),),
    )


def verify_stage(*, shards: Path | str, options: tuple[str, ...] = ()) -> Stage:
    """A check of finished shards. No part of the graph."""
    return Stage(
        name="verify",
        module="preprocess.verify",
        arguments=(f"--shards={shards}", *options),
        output=Path(shards),
        marker=Path(shards) / MANIFEST_NAME,
        inputs={},
        settings={},
        resources=Resources(threads=1),
    )


def preview_stage(
    recipe: Recipe, *, shards: Path | str, out: Path, count: int | None = None, options: tuple[str, ...] = ()
) -> Stage:
    """A contact sheet of superpixels."""
    count = recipe.workflow.preview_images if count is None else count
    return Stage(
        name="preview",
        module="preprocess.preview",
        arguments=(f"--shards={shards}", f"--out={out}", f"--count={count}", *options),
        output=out,
        marker=out,
        inputs={"shards": Path(shards)},
        settings={"count": count},
        shows=(("contact sheet of superpixels", out),),
    )


def pretrain_stage(
    recipe: Recipe, *, shards: Path | str, run: Path, nproc: int | None = None, options: tuple[str, ...] = ()
) -> Stage:
    """R2O pretraining on `nproc` processes of this machine."""
    return Stage(
        name="pretrain",
        module="train.pretrain",
        arguments=(f"--shards={shards}", f"--run={run}", *options),
        output=run,
        marker=run / BACKBONE_NAME,
        inputs={"shards": Path(shards)},
        settings=recipe.pretrain.content(),
        resources=Resources(processes=nproc or recipe.workflow.nproc),
        shows=(("pretrained backbone", run / BACKBONE_NAME), ("panels of refined masks", run / PANELS_FOLDER)),
    )


def export_stage(*, run: Path, out: Path, options: tuple[str, ...] = ()) -> Stage:
    """A run's backbone under the names of another library."""
    return Stage(
        name="export",
        module="train.export",
        arguments=(f"--run={run}", f"--out={out}", *options),
        output=out,
        marker=out.with_suffix(".md"),
        inputs={"run": run},
        settings={},
    )


def eval_voc_stage(recipe: Recipe, *, run: Path, voc: Path, options: tuple[str, ...] = ()) -> Stage:
    """FCN fine-tuning and mIoU on a VOC2012 layout."""
    out = run / evaluation_folder("voc")
    return Stage(
        name="eval-voc",
        module="train.evals.voc",
        arguments=(f"--run={run}", f"--voc={voc}", *options),
        output=out,
        marker=out / RESULTS_NAME,
        inputs={"run": run, "voc": voc},
        settings=recipe.eval_voc.content(),
        shows=(("VOC results", out / RESULTS_NAME), ("VOC predictions", out / PREDICTIONS_NAME)),
        reconciles=True,  # pairs of initialisation and seed are stored one by one
    )


def workflow(recipe: Recipe, *, work: Path, options: tuple[str, ...] = ()) -> tuple[Stage, ...]:
    """The stages of `r2o run` in an order in which each comes after its needs.

    Without `workflow.images` the embedded scenes are generated; without `workflow.voc` the evaluation takes the
    scenes' VOC layout, and is left out where there are no scenes.
    """
    settings, scenes, shards, run = recipe.workflow, work / "scenes", work / "shards", work / "pretrain"
    images = settings.images or scenes / "images"
    voc = settings.voc or (None if settings.images else scenes / "VOCdevkit" / "VOC2012")
    stages = [] if settings.images else [scenes_stage(recipe, out=scenes, options=options)]
    stages += [
        shards_stage(recipe, images=images, shards=shards, options=options),
        preview_stage(recipe, shards=shards, out=work / "superpixels.png"),
        pretrain_stage(recipe, shards=shards, run=run, options=options),
    ]
    if voc:
        stages.append(eval_voc_stage(recipe, run=run, voc=voc, options=options))
    return tuple(_connected(stages))


def _connected(stages: Sequence[Stage]) -> list[Stage]:
    """Each input that lies in another stage's output becomes a need of that stage."""

    def maker(path: Path) -> str | None:
        return next((s.name for s in stages if s.output == path or s.output in path.parents), None)

    connected = []
    for stage in stages:
        needs = tuple(dict.fromkeys(name for path in stage.inputs.values() if (name := maker(path))))
        outside = {option: path for option, path in stage.inputs.items() if not maker(path)}
        connected.append(replace(stage, needs=needs, inputs=outside))
    return connected


def fingerprint_parts(
    stages: Sequence[Stage], *, contents: Mapping[str, Mapping[str, str]], version: str
) -> dict[str, dict[str, Any]]:
    """What decides each stage's result: its settings, outside inputs, needs and the code's version.

    Args:
        contents: per stage and input option, a digest of the folder that no stage makes. Paths do not enter, nor
            does the number of processes.
    """
    parts: dict[str, dict[str, Any]] = {}
    for stage in stages:
        parts[stage.name] = {
            "settings": dict(stage.settings),
            "inputs": dict(contents.get(stage.name, {})),
            "needs": {name: fingerprint(**parts[name]) for name in stage.needs},
            "version": version,
        }
    return parts
