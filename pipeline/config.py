"""Settings of the workflow (section `workflow`) and the whole of a config file, every section checked."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.foundation.settings import Settings, load_settings
from preprocess.config import SceneSettings, ShardSettings
from train.config.evals import EvalVocSettings
from train.config.pretrain import PretrainSettings


class WorkflowSettings(Settings):
    """What `r2o run` works on and where. Relative paths are relative to the current folder."""

    work: Path | None = Field(None, description="folder of all results; runs/<name of the config> where not given")
    images: Path | None = Field(None, description="folder to pretrain on; the embedded scenes where not given")
    voc: Path | None = Field(None, description="VOC2012 folder to evaluate on; the scenes' own where neither is given")
    nproc: Annotated[int, Field(gt=0)] = Field(1, description="training processes on this machine")
    preview_images: Annotated[int, Field(gt=0)] = Field(24, description="tiles of the contact sheet")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every section of one config file."""

    scenes: SceneSettings
    shards: ShardSettings
    pretrain: PretrainSettings
    eval_voc: EvalVocSettings
    workflow: WorkflowSettings


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """All sections of a config file. Raises InputError for the first mistake in any of them."""
    return Recipe(
        scenes=load_settings(SceneSettings, "scenes", path, overrides),
        shards=load_settings(ShardSettings, "shards", path, overrides),
        pretrain=load_settings(PretrainSettings, "pretrain", path, overrides),
        eval_voc=load_settings(EvalVocSettings, "eval_voc", path, overrides),
        workflow=load_settings(WorkflowSettings, "workflow", path, overrides),
    )


def code_version() -> str:
    """The checkout's version, from its pyproject.toml: the metadata of an editable install can be of an older one."""
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    return str(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["version"])
