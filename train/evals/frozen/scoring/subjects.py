"""Whose features are scored: weights that the user names, and the random ones beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.artifacts.run_files import BACKBONE_NAME, CHECKPOINTS_FOLDER, CONFIG_NAME, RECORD_NAME
from pipeline.artifacts.scores import WeightsRecord
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import load_settings
from train.config.frozen import FeatureSettings
from train.config.pretrain import PretrainSettings
from train.evals.datasets.annotated import DataSet, ImageList
from train.evals.frozen.extraction.read_ahead import read_batches
from train.evals.frozen.over_run import checkpoints_of
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from train.models.frozen import FrozenModel, random_model, set_batch_norm_statistics
from train.models.weights.form import BACKBONES
from train.models.weights.load import LoadedBackbone, load_backbone

RandomKind = Literal["random", "random-bn"]
RANDOM_KINDS: tuple[RandomKind, ...] = ("random", "random-bn")
ALL_CHECKPOINTS = "all"
BATCH_NORM_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A backbone to be scored.

    Attributes:
        label: of its folder of results and its column of the table.
        loaded: the weights; None: random ones, by the seed of the protocol.
        batch_norm: as in `WeightsRecord`.
        own_layers: of random weights of a ViT, as `LoadedBackbone.own_layers`.
        num_clusters: K of the run's schedule when the weights were saved; None where they are of no run.
        part: which of a file's networks, "online" or "target".
        epoch: how many epochs were done, where it is a checkpoint of a run.
    """

    label: str
    backbone: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loaded: LoadedBackbone | None = None
    batch_norm: Literal["weights", "data", "initial"] = "weights"
    own_layers: bool = False
    num_clusters: int | None = None
    part: str = "online"
    epoch: float | None = None

    @property
    def depends_on_seed(self) -> bool:
        """Whether each seed has weights of its own."""
        return self.loaded is None

    @property
    def record(self) -> WeightsRecord:
        """What results say of it."""
        loaded = self.loaded
        return WeightsRecord(
            label=self.label,
            backbone=self.backbone,
            format=loaded.format if loaded else self.label,
            sha256=loaded.sha256 if loaded else None,
            batch_norm=self.batch_norm,
            loaded=loaded.loaded if loaded else 0.0,
        )

    def identity(self, data: DataSet, settings: FeatureSettings, *, seed: int) -> dict[str, Any]:
        """What tells these weights from others, as plain JSON values."""
        normalisation = {"backbone": self.backbone, "mean": list(self.mean), "std": list(self.std)}
        if self.loaded:
            return {**normalisation, "sha256": self.loaded.sha256, "part": self.part}
        random: dict[str, Any] = {**normalisation, "random_seed": seed, "own_layers": self.own_layers}
        if self.batch_norm == "data":
            images = _measured_on(data)
            random["batch_norm"] = {"images": images.image_digest, "most": settings.batch_norm_images}
        return random

    def build(
        self, data: DataSet, settings: FeatureSettings, *, seed: int, size: int, device: torch.device
    ) -> FrozenModel:
        """The network on `device`, in eval mode.

        Args:
            data: whose training images (those of val where there are none) give batch norm's statistics, if any do.
            size: of the images in pixels.
        """
        if self.loaded:
            backbone = self.loaded.build(dilate_c5=settings.dilate_c5, image_size=size)
            return FrozenModel(backbone, mean=self.mean, std=self.std).to(device)
        made = random_model(self.backbone, seed=seed, dilate_c5=settings.dilate_c5, own_layers=self.own_layers)
        model = FrozenModel(made.backbone, mean=self.mean, std=self.std).to(device)
        if self.batch_norm == "data":
            images = _measured_on(data)
            count = min(settings.batch_norm_images, len(images.names))
            chosen = [place * len(images.names) // count for place in range(count)]
            batches = [chosen[first : first + BATCH_NORM_BATCH] for first in range(0, count, BATCH_NORM_BATCH)]
            set_batch_norm_statistics(model, (b.to(device) for b in read_batches(images, batches, size=size)))
        return model


def named_subjects(
    weights: str, *, format: str = "auto", backbone: str | None = None, part: str = "online", checkpoint: str | None
) -> list[Subject]:
    """The subjects that a command line names, in the order in which they are scored.

    Args:
        weights: a file, the folder of a run, "random" or "random-bn".
        backbone: of random weights, and of a file whose backbone is to be this one.
        part: "online" or "target".
        checkpoint: a file of the run's checkpoints, or "all" of them.
    Raises:
        InputError: there are no such weights, or the backbone is missing.
    """
    if weights in RANDOM_KINDS:
        if backbone is None or checkpoint or format != "auto":
            raise InputError(f"--weights {weights} needs --backbone, such as resnet50, and neither --format nor others")
        if backbone not in BACKBONES:
            raise InputError(f"--backbone: no backbone {backbone!r}; there are {', '.join(BACKBONES)}")
        return [_random(kind, backbone, IMAGENET_MEAN, IMAGENET_STD) for kind in RANDOM_KINDS if kind == weights]
    path = Path(weights)
    if checkpoint is None:
        return [_loaded(path, format, backbone, part)]
    if checkpoint != ALL_CHECKPOINTS:
        return [_loaded(Path(checkpoint), format, backbone, part)]
    paths = [one.path for one in checkpoints_of(path)]
    if not paths:
        raise InputError(f"{path / CHECKPOINTS_FOLDER}: no checkpoint; --weights must be the folder of a run")
    return [_loaded(one, format, backbone, part) for one in paths]


def baselines_of(subject: Subject, kinds: Sequence[RandomKind]) -> Iterator[Subject]:
    """Random weights of a subject's architecture, normalisation and K, but the kind that it is itself.

    Where the backbone has no batch norm, "random-bn" is "random", and is left out.
    """
    for kind in kinds:
        if kind != subject.label and (kind == "random" or not subject.backbone.startswith("vit")):
            made = _random(kind, subject.backbone, subject.mean, subject.std)
            yield replace(made, own_layers=subject.own_layers, num_clusters=subject.num_clusters)


def default_out(weights: str, subject: Subject) -> Path:
    """Where results go: RUN/eval-frozen of a run, else runs/eval-frozen/<name of the weights>."""
    path = Path(weights)
    is_run = subject.loaded is not None and path.is_dir()
    return path / "eval-frozen" if is_run else Path("runs") / "eval-frozen" / _of_backbone(subject)


def _of_backbone(subject: Subject) -> str:
    return subject.label if subject.loaded else f"{subject.label}-{subject.backbone}"


def _random(kind: RandomKind, backbone: str, mean: Sequence[float], std: Sequence[float]) -> Subject:
    return Subject(
        label=kind,
        backbone=backbone,
        mean=tuple(mean),
        std=tuple(std),
        batch_norm="data" if kind == "random-bn" else "initial",
    )


def _loaded(path: Path, format: str, backbone: str | None, part: str) -> Subject:
    run = _run_of(path)
    if path == run and not (run / BACKBONE_NAME).is_file():
        raise InputError(f"{run}: no {BACKBONE_NAME}, so this is no finished run; give --checkpoint FILE or all")
    loaded = load_backbone(path, format=format, backbone=backbone, part=part)
    is_checkpoint = run is not None and path.parent == run / CHECKPOINTS_FOLDER
    among = checkpoints_of(run) if run and is_checkpoint else []
    checkpoint = next((one for one in among if one.path.name == path.name), None)
    name = run.resolve().name if run else f"{path.stem}-{loaded.sha256[:8]}"
    label = safe_name("-".join([name, *([path.stem] if checkpoint else []), *([part] if part != "online" else [])]))
    return Subject(
        label=f"run-{label}" if label in RANDOM_KINDS else label,
        backbone=loaded.name,
        mean=loaded.mean,
        std=loaded.std,
        loaded=loaded,
        own_layers=loaded.own_layers,
        num_clusters=checkpoint.num_clusters if checkpoint else _last_num_clusters(run),
        part=part,
        epoch=checkpoint.epoch if checkpoint else None,
    )


def safe_name(text: str) -> str:
    """A name of a file or folder; what is neither a letter, digit, point, dash nor underscore becomes a dash."""
    return re.sub(r"[^\w.-]", "-", text, flags=re.ASCII).lstrip(".-") or "unnamed"


def _run_of(path: Path) -> Path | None:
    """The folder of a run that a path is, or that a backbone or checkpoint lies in."""
    if path.is_dir():
        return path
    if path.parent.name == CHECKPOINTS_FOLDER and (path.parent.parent / RECORD_NAME).is_file():
        return path.parent.parent
    return path.parent if path.name == BACKBONE_NAME else None


def _last_num_clusters(run: Path | None) -> int | None:
    """K at the end of a run, by its settings. Raises InputError where these are none."""
    if run is None or not (run / CONFIG_NAME).is_file():
        return None
    settings = load_settings(PretrainSettings, "pretrain", run / CONFIG_NAME)
    return settings.num_clusters(settings.epochs - 1)


def _measured_on(data: DataSet) -> ImageList:
    return data.train or data.val
