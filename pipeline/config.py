"""Settings of the workflow (section `workflow`) and the whole of a config file, every section checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from pipeline.foundation.settings import SECTIONS, Settings, load_settings
from pipeline.stages import EVALUATIONS
from preprocess.config import SceneSettings, ShardSettings
from train.config.evaluation import EvaluationSettings
from train.config.frozen import EvalFrozenSettings
from train.config.pretrain import PretrainSettings


class WorkflowSettings(Settings):
    """What `r2o run` works on and where. Relative paths are relative to the current folder.

    Every evaluation adds a field of its name: the folder of its data.
    """

    work: Path | None = Field(None, description="folder of all results; runs/<name of the config> where not given")
    images: Path | None = Field(None, description="folder to pretrain on; the embedded scenes where not given")
    nproc: Annotated[int, Field(gt=0)] = Field(1, description="training processes on this machine")
    frozen: Path | None = Field(None, description="folder of annotated images, to score frozen features on")
    frozen_superpixels: bool = Field(
        False, description="ABO on that folder, of VOC's layout, has superpixels by `shards`; false: rectangles"
    )
    preview_images: Annotated[int, Field(gt=0)] = Field(24, description="tiles of the contact sheet")

    def data_of(self, evaluation: str) -> Path | None:
        """The folder that an evaluation of this name works on, where one is given."""
        found: Path | None = getattr(self, evaluation)
        return found


def workflow_model() -> type[WorkflowSettings]:
    """The settings with the field of every evaluation."""
    fields: dict[str, Any] = {
        name: (Path | None, Field(None, description=f"{evaluation.data}, to evaluate on"))
        for name, evaluation in EVALUATIONS.items()
    }
    return create_model("WorkflowSettings", __base__=WorkflowSettings, **fields)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every section of one config file; `evaluations` by name."""

    scenes: SceneSettings
    shards: ShardSettings
    pretrain: PretrainSettings
    evaluations: Mapping[str, EvaluationSettings]
    frozen: EvalFrozenSettings
    workflow: WorkflowSettings


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """All sections of a config file. Raises InputError for the first mistake in any of them."""
    of_evaluations = {name: evaluation.settings for name, evaluation in EVALUATIONS.items()}
    named = [model.SECTION for model in of_evaluations.values()]
    known = (*SECTIONS[:-1], EvalFrozenSettings.SECTION, *named, *SECTIONS[-1:])
    return Recipe(
        scenes=load_settings(SceneSettings, "scenes", path, overrides, known),
        shards=load_settings(ShardSettings, "shards", path, overrides, known),
        pretrain=load_settings(PretrainSettings, "pretrain", path, overrides, known),
        evaluations={
            name: load_settings(model, model.SECTION, path, overrides, known) for name, model in of_evaluations.items()
        },
        frozen=load_settings(EvalFrozenSettings, EvalFrozenSettings.SECTION, path, overrides, known),
        workflow=load_settings(workflow_model(), "workflow", path, overrides, known),
    )


def code_version() -> str:
    """The checkout's version, from its pyproject.toml: the metadata of an editable install can be of an older one."""
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    return str(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"])
