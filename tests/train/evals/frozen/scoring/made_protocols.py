"""Protocols that a test makes up: they read features as the real ones do, and note that they were called."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.scores import ImageCounts, score_of
from tests.train.evals.frozen.made_images import made_data
from train.config.evals import load_evaluation_settings
from train.config.frozen import Annotation, EvalFrozenSettings
from train.distributed.world import World
from train.evals.datasets.annotated import DataSet
from train.evals.frozen.protocol import Finding, Task
from train.evals.frozen.scoring.evaluation import FrozenEvaluation, ImageSet
from train.evals.frozen.scoring.plan import plan_protocols
from train.evals.frozen.scoring.subjects import Subject, baselines_of, named_subjects

SMALL = ["linear.size=64", "knn.size=64", "classes.size=64", "features.batch_size=4", "linear.seeds=[0,1]"]
CALLS: list[str] = []


def first_channel(task: Task) -> Finding:  # type: ignore[type-arg]
    """mean_iou of "the first channel is above its mean on train", at the size of the labels."""
    CALLS.append(f"{type(task.settings).__name__} {task.seed}")
    level, size = task.settings.level, task.settings.size
    val, train = task.features("val", level, size), task.features("train", level, size)
    threshold = float(train.cells[..., 0].astype(np.float32).mean())

    def predict(index: int) -> np.ndarray:
        height, width = val.images.read(index).image.shape[:2]
        above = val.cells[index][..., 0] > threshold
        rows, columns = np.arange(height) * len(above) // height, np.arange(width) * above.shape[1] // width
        return above[rows[:, None], columns].astype(np.int16)

    value, weight = np.zeros((len(val.cells), 2)), np.zeros((len(val.cells), 2))
    with task.clock.phase("count"):
        for index in range(len(val.cells)):
            labels, predicted = val.images.read(index).labels, predict(index)
            for c in (0, 1):
                value[index, c] = ((labels == c) & (predicted == c)).sum()
                weight[index, c] = ((labels == c) | (predicted == c)).sum()
    counts = ImageCounts("iou", value, weight)
    return Finding(
        scores={"mean_iou": score_of(counts)},
        per_image={"mean_iou": counts},
        per_class={"mean_iou": {"left": 0.25, "right": None}},
        chosen={"threshold": threshold},
        predict=predict,
    )


def pooled_mean(task: Task) -> Finding:  # type: ignore[type-arg]
    """Of whole images: reads no cells."""
    CALLS.append(f"classes {task.seed}")
    val = task.features("val", task.settings.level, task.settings.size)
    assert val.cells.shape == (len(val.pooled), 0, 0, 0)
    value = (val.pooled.mean(1) > 0).astype(float)
    counts = ImageCounts("mean", value, np.ones_like(value))
    return Finding(scores={"linear": score_of(counts)}, per_image={"linear": counts})


FUNCTIONS = {"linear": first_channel, "knn": first_channel, "classes": pooled_mean}


def an_evaluation(
    out: Path,
    *settings: str,
    protocols: Sequence[str] = ("linear", "knn"),
    has: Sequence[Annotation] = ("labels",),
    data: DataSet | None = None,
    subjects: Sequence[Subject] | None = None,
    world: World | None = None,
    features: Path | None = None,
) -> FrozenEvaluation:
    """Random ResNet-18s on made images."""
    chosen = load_evaluation_settings(EvalFrozenSettings, None, [f"eval_frozen.{s}" for s in (*SMALL, *settings)])
    images = data or made_data(out, has=has)
    named = list(subjects or named_subjects("random", backbone="resnet18", checkpoint=None))
    return FrozenEvaluation(
        settings=chosen,
        image_sets=[ImageSet(name="made", data=images, plan=plan_protocols(images, protocols))],
        subjects=[*named, *baselines_of(named[-1], chosen.baselines)],
        out=out,
        features=features or out / "features",
        functions=FUNCTIONS,
        world=world or World(0, 1, torch.device("cpu")),
    )


def other_data(data: DataSet) -> DataSet:
    """The same images with another digest of their labels."""
    digests = {need: {part: f"other {digest}" for part, digest in of.items()} for need, of in data.digests.items()}
    return replace(data, digests=digests)
