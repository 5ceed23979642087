"""The stages of a recipe, in order: which there are, and what each needs of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import Recipe
from pipeline.foundation.errors import InputError
from pipeline.stages import (
    EVALUATIONS,
    VOC_OF_SCENES,
    Stage,
    evaluation_stage,
    frozen_stage,
    pretrain_stage,
    preview_stage,
    scenes_stage,
    shards_stage,
)
from preprocess.config import SourceSettings

VOC_IMAGES = "JPEGImages"


def workflow(recipe: Recipe, *, work: Path, options: tuple[str, ...] = ()) -> tuple[Stage, ...]:
    """The stages of `r2o run` in an order in which each comes after its needs.

    Without `workflow.images` the embedded scenes are generated. An evaluation takes the data that `workflow.<name>`
    names, without it what the scenes hold for it, and is left out where there is neither.

    Raises:
        InputError: superpixels are asked for of a folder that has no JPEGImages.
    """
    settings, scenes, shards, run = recipe.workflow, work / "scenes", work / "shards", work / "pretrain"
    images = settings.images or scenes / "images"
    annotated = settings.frozen or (None if settings.images else scenes / VOC_OF_SCENES)
    val_shards = _val_shards_stage(recipe, annotated, out=work / "val-shards", options=options)
    stages = [] if settings.images else [scenes_stage(recipe.scenes, out=scenes, options=options)]
    stages += [
        shards_stage(recipe.shards, images=images, shards=shards, options=options),
        preview_stage(shards=shards, out=work / "superpixels.png", count=settings.preview_images),
        *([val_shards] if val_shards else []),
        pretrain_stage(recipe.pretrain, shards=shards, run=run, nproc=settings.nproc, options=options),
    ]
    for name, evaluation in EVALUATIONS.items():
        generated = None if settings.images or evaluation.of_scenes is None else scenes / evaluation.of_scenes
        if data := settings.data_of(name) or generated:
            made = evaluation_stage(evaluation, recipe.evaluations[name], run=run, data=data, options=options)
            stages.append(made)
    if annotated:
        superpixels = val_shards.output if val_shards else None
        stages.append(
            frozen_stage(recipe.frozen, weights=str(run), data=[annotated], superpixels=superpixels, options=options)
        )
    return tuple(_connected(stages))


def _val_shards_stage(recipe: Recipe, annotated: Path | None, *, out: Path, options: tuple[str, ...]) -> Stage | None:
    """Superpixels for ABO, by the settings of `shards`; None where ABO is not run, or has others.

    All images of the folder are taken: which ones the pretraining takes, and what they lie in, is no matter here.
    """
    settings, frozen = recipe.workflow, recipe.frozen
    runs_abo = frozen.protocols is None or "abo" in frozen.protocols
    is_wanted = settings.frozen is None or settings.frozen_superpixels
    if annotated is None or not runs_abo or not is_wanted or frozen.abo.superpixels is not None:
        return None
    everything = ("count=null", "source.format=folder", "source.classes=null", "source.names=null")
    made = shards_stage(
        recipe.shards.model_copy(update={"count": None, "source": SourceSettings(format="folder")}),
        images=_images_of_voc(annotated) if settings.frozen else annotated / VOC_IMAGES,
        shards=out,
        options=(*options, *(f"--set=shards.{one}" for one in everything)),
    )
    return replace(made, name="val-shards", shows=(("superpixels for ABO", out),))


def _images_of_voc(data: Path) -> Path:
    """The images of VOC2012, or of the VOCdevkit above it."""
    places = [root / VOC_IMAGES for root in (data, data / "VOC2012", data / "VOCdevkit" / "VOC2012")]
    if found := next((place for place in places if place.is_dir()), None):
        return found
    raise InputError(
        f"workflow.frozen_superpixels: {data} has no {VOC_IMAGES}, so it is no folder of VOC2012's layout; leave that "
        "setting out, or `make shards` of its images and name them by eval_frozen.abo.superpixels"
    )


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
