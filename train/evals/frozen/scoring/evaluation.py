"""What one command scores: sets of images × backbones × protocols × seeds, and the passes that these need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts.fingerprint import fingerprint
from train.config.frozen import DataPart, EvalFrozenSettings, FrozenProtocol
from train.distributed.world import World
from train.evals.datasets.annotated import DataSet, ImageList
from train.evals.frozen.extraction.extract import ArrayName, FeaturePass
from train.evals.frozen.extraction.requests import PassRequest
from train.evals.frozen.protocol import Finding, Task
from train.evals.frozen.scoring.plan import ProtocolPlan, data_fingerprint, deciding_settings, settings_of
from train.evals.frozen.scoring.stored import seed_folder
from train.evals.frozen.scoring.subjects import Subject
from train.models.frozen import FrozenModel

ScoreFunction = Callable[[Task[Any]], Finding]
ARRAYS: tuple[ArrayName, ...] = ("c4", "c5", "pooled")
PARTS: tuple[DataPart, ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images under the name of their folder of results, and what is done with them."""

    name: str
    data: DataSet
    plan: ProtocolPlan

    def images(self, part: DataPart) -> ImageList:
        """Those of one part. A protocol that asks for train is not chosen where there is none."""
        if part == "val":
            return self.data.val
        assert self.data.train is not None, self.name
        return self.data.train


class Cell(NamedTuple):
    """One result: numbers of the set of images and of the subject, protocol, seed."""

    image_set: int
    subject: int
    seed: int
    protocol: FrozenProtocol


@dataclass(frozen=True, kw_only=True)
class FrozenEvaluation:
    """What is scored, and where results and features go. Every rank has the same.

    Attributes:
        functions: the code of each protocol.
    """

    settings: EvalFrozenSettings
    image_sets: Sequence[ImageSet]
    subjects: Sequence[Subject]
    out: Path
    features: Path
    functions: Mapping[str, ScoreFunction]
    world: World

    @property
    def cells(self) -> list[Cell]:
        """All results, in the order in which they are made: those that share a network follow each other."""
        cells = []
        for number, image_set in enumerate(self.image_sets):
            protocols = image_set.plan.chosen
            seeds = sorted({seed for p in protocols for seed in settings_of(self.settings, p).seeds})
            for subject in range(len(self.subjects)):
                for seed in seeds:
                    having = (p for p in protocols if seed in settings_of(self.settings, p).seeds)
                    cells += [Cell(number, subject, seed, protocol) for protocol in having]
        return cells

    def folder(self, cell: Cell) -> Path:
        """Of one result."""
        return seed_folder(
            self.out,
            data=self.image_sets[cell.image_set].name,
            label=self.subjects[cell.subject].label,
            protocol=cell.protocol.name,
            seed=cell.seed,
        )

    def settings_of(self, cell: Cell) -> dict[str, Any]:
        """All settings that decide one result."""
        num_clusters = self.subjects[cell.subject].num_clusters
        return deciding_settings(self.settings, cell.protocol, num_clusters=num_clusters)

    def fingerprint_of(self, cell: Cell) -> str:
        """Hash of all that decides one result."""
        data = self.image_sets[cell.image_set].data
        return fingerprint(
            protocol=cell.protocol.id,
            settings=self.settings_of(cell),
            data=data_fingerprint(data, cell.protocol),
            weights=self.subjects[cell.subject].identity(data, self.settings.features, seed=cell.seed),
            seed=cell.seed,
        )

    def weights_seed(self, subject: int, seed: int) -> int:
        """The seed of a subject's weights; 0 for weights of a file, which are the same for every seed."""
        return seed if self.subjects[subject].depends_on_seed else 0

    def request(self, cell: Cell, part: DataPart, size: int, arrays: Iterable[ArrayName]) -> PassRequest:
        """The pass that gives arrays of one part."""
        return PassRequest(
            data=cell.image_set,
            subject=cell.subject,
            seed=self.weights_seed(cell.subject, cell.seed),
            part=part,
            size=size,
            arrays=_in_order(arrays),
        )

    def requests_of(self, cells: Iterable[Cell]) -> list[PassRequest]:
        """What results will ask for, by their settings: one pass for all that share it."""
        found: dict[PassRequest, set[ArrayName]] = {}
        for cell in cells:
            settings, protocol = settings_of(self.settings, cell.protocol), cell.protocol
            levels: tuple[ArrayName, ...] = () if protocol.needs == "class_id" else (settings.level,)
            for part in PARTS if protocol.fits else PARTS[1:]:
                found.setdefault(self.request(cell, part, settings.size, ()), set()).update(levels)
        return [replace(key, arrays=_in_order(names)) for key, names in found.items()]

    def model_for_shapes(self, size: int) -> FrozenModel:
        """A network whose features have the shapes of all: the subjects have one architecture."""
        first, data = self.subjects[0], self.image_sets[0].data
        plain = first if first.loaded else replace(first, batch_norm="initial")
        return plain.build(data, self.settings.features, seed=0, size=size, device=self.world.device)

    def pass_of(self, request: PassRequest) -> FeaturePass:
        """The pass of a request."""
        image_set, subject = self.image_sets[request.data], self.subjects[request.subject]
        features = self.settings.features
        return FeaturePass(
            label=f"{image_set.name} {request.part} by {subject.label}",
            images=image_set.images(request.part),
            weights=subject.identity(image_set.data, features, seed=request.seed),
            backbone=subject.backbone,
            size=request.size,
            dilate_c5=features.dilate_c5,
            batch_size=features.batch_size,
            dtype=features.dtype,
        )


def _in_order(names: Iterable[ArrayName]) -> tuple[ArrayName, ...]:
    """The pooled vectors take little, and are always kept."""
    wanted = {*names, "pooled"}
    return tuple(name for name in ARRAYS if name in wanted)
