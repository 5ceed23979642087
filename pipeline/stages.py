"""Stages as data: what each is called, starts, reads, writes and needs; and one entry for every evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.manifest import MANIFEST_NAME
from pipeline.artifacts.run_files import (
    BACKBONE_NAME,
    KEYS_NAME,
    PANELS_FOLDER,
    PREDICTIONS_NAME,
    RESULTS_NAME,
    SUMMARY_NAME,
    evaluation_folder,
)
from preprocess.config import SceneSettings, ShardSettings
from train.config.evals import EvalVocSettings
from train.config.evaluation import EvaluationSettings
from train.config.frozen import EvalFrozenSettings
from train.config.pretrain import PretrainSettings

# What options, settings of the workflow, and variables of the Makefile or the shell are called already.
TAKEN_NAMES = frozenset(
    {
        "work", "images", "nproc", "run", "config", "set", "path", "home", "shell", "data", "shards", "out", "png",
        "init", "format", "heads", "checkpoint", "overwrite", "repair", "python", "venv", "tests", "before", "parts",
        "n", "seed", "from", "frozen", "weights", "backbone", "protocols", "features",
    }
)  # fmt: skip


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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that parser, workflow and Makefile need to know of an evaluation.

    Its name makes the verb `eval-<name>` and the folder of results `RUN/eval-<name>`. The option `--<name>` and the
    setting `workflow.<name>` name the folder of its data. `make eval-<name> RUN=… <NAME>=…` starts it. It leaves
    `results.json` (written last) and `predictions.png`.

    Args:
        title: what people call the data set.
        module: what `python -m` starts; train/evals/<name>.py.
        settings: of its section.
        help: what it does, for `r2o --help`.
        data: what the folder of its data is.
        of_scenes: where in the generated scenes such data lies; None: they have none.
    """

    name: str
    title: str
    module: str
    settings: type[EvaluationSettings]
    help: str
    data: str
    of_scenes: Path | None = None

    def __post_init__(self) -> None:
        assert re.fullmatch(r"[a-z][a-z0-9]*", self.name), self.name
        assert self.name not in TAKEN_NAMES, self.name

    @property
    def verb(self) -> str:
        """Of the command line, of the stage, and of the folder of results."""
        return evaluation_folder(self.name)


VOC_OF_SCENES = Path("VOCdevkit") / "VOC2012"

# A new evaluation is one entry here, its file in train/evals and its settings in train/config/evals.py.
EVALUATIONS = {
    evaluation.name: evaluation
    for evaluation in (
        Evaluation(
            name="voc",
            title="VOC",
            module="train.evals.voc",
            settings=EvalVocSettings,
            help="fine-tune an FCN, score mIoU",
            data="folder of VOC2012's layout",
            of_scenes=VOC_OF_SCENES,
        ),
    )
}


def config_arguments(config: Path | None, overrides: Sequence[str]) -> tuple[str, ...]:
    """`--config F` and `--set section.key=value` as every stage command takes them."""
    return (*([f"--config={config}"] if config else []), *(f"--set={override}" for override in overrides))


def scenes_stage(settings: SceneSettings, *, out: Path, options: tuple[str, ...] = ()) -> Stage:
    """Generate the embedded scenes: class folders under `out`/images and a VOC2012 layout."""
    return Stage(
        name="scenes",
        module="preprocess.scenes",
        arguments=(f"--out={out}", *options),
        output=out,
        marker=out / "scenes.json",
        inputs={},
        settings=settings.model_dump(mode="json"),
    )


def shards_stage(
    settings: ShardSettings, *, images: Path | str, shards: Path | str, options: tuple[str, ...] = ()
) -> Stage:
    """Images to superpixel shards. Ray gives each of its tasks one core, hence one thread."""
    return Stage(
        name="shards",
        module="preprocess.make_shards",
        arguments=(f"--images={images}", f"--shards={shards}", *options),
        output=Path(shards),
        marker=Path(shards) / MANIFEST_NAME,
        inputs={"images": Path(images)},
        settings=settings.content(),
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


def preview_stage(*, shards: Path | str, out: Path, count: int, options: tuple[str, ...] = ()) -> Stage:
    """A contact sheet of `count` images with their superpixels."""
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
    settings: PretrainSettings, *, shards: Path | str, run: Path, nproc: int, options: tuple[str, ...] = ()
) -> Stage:
    """R2O pretraining on `nproc` processes of this machine."""
    return Stage(
        name="pretrain",
        module="train.pretrain",
        arguments=(f"--shards={shards}", f"--run={run}", *options),
        output=run,
        marker=run / BACKBONE_NAME,
        inputs={"shards": Path(shards)},
        settings=settings.content(),
        resources=Resources(processes=nproc),
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


def evaluation_stage(
    evaluation: Evaluation, settings: EvaluationSettings, *, run: Path, data: Path, options: tuple[str, ...] = ()
) -> Stage:
    """An evaluation of a run's backbone.

    Args:
        data: the folder that `--<name>` names.
    """
    out = run / evaluation.verb
    return Stage(
        name=evaluation.verb,
        module=evaluation.module,
        arguments=(f"--run={run}", f"--{evaluation.name}={data}", *options),
        output=out,
        marker=out / RESULTS_NAME,
        inputs={"run": run, evaluation.name: data},
        settings=settings.content(),
        shows=(
            (f"{evaluation.title} results", out / RESULTS_NAME),
            (f"{evaluation.title} predictions", out / PREDICTIONS_NAME),
        ),
        reconciles=True,  # every trial is stored by itself (train.evals.trials)
    )


def frozen_stage(
    settings: EvalFrozenSettings,
    *,
    weights: str,
    data: Sequence[Path],
    superpixels: Path | None = None,
    out: Path | None = None,
    options: tuple[str, ...] = (),
    nproc: int = 1,
) -> Stage:
    """The protocols on frozen features.

    Args:
        superpixels: shards for ABO, in place of those that the settings name.
        out: where results go; None: of a run RUN/eval-frozen, else a folder below runs/eval-frozen.
        options: `--out` among them, where it is given.
    """
    results = out or Path(weights) / evaluation_folder("frozen")
    inputs = {"weights": Path(weights), **{f"data{number or ''}": folder for number, folder in enumerate(data)}}
    if superpixels:
        inputs["superpixels"] = superpixels
        quoted = json.dumps(str(superpixels), ensure_ascii=False)  # a string of YAML, whatever the path looks like
        options = (*options, f"--set=eval_frozen.abo.superpixels={quoted}")
    return Stage(
        name=evaluation_folder("frozen"),
        module="train.evals.frozen.score",
        arguments=(f"--weights={weights}", *(f"--data={folder}" for folder in data), *options),
        output=results,
        marker=results / SUMMARY_NAME,
        inputs=inputs,
        settings=settings.content(),
        resources=Resources(processes=nproc),
        shows=(("scores of frozen features", results / SUMMARY_NAME),),
        reconciles=True,  # every result is stored by itself (train.evals.frozen.scoring)
    )


def features_stage(
    settings: EvalFrozenSettings, *, weights: str, data: Path, out: Path, options: tuple[str, ...] = (), nproc: int = 1
) -> Stage:
    """Features of a folder of images as .npy files. No part of the graph."""
    return Stage(
        name="features",
        module="train.evals.frozen.features",
        arguments=(f"--weights={weights}", f"--data={data}", f"--out={out}", *options),
        output=out,
        marker=out / KEYS_NAME,
        inputs={"weights": Path(weights), "data": data},
        settings=settings.content(),
        resources=Resources(processes=nproc),
    )
