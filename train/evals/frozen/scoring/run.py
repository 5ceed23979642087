"""Makes the results of an evaluation: one pass for all protocols that share it, each result stored at once."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from pipeline.artifacts.run_files import PREDICTIONS_NAME, SUMMARY_NAME
from pipeline.artifacts.scores import SCORES_NAME, Scores, read_scores, score_of, write_scores
from pipeline.foundation.files import write_atomic
from pipeline.foundation.locks import only_holder
from pipeline.foundation.progress import format_seconds, say
from train.config.frozen import DataPart, Level
from train.evals.datasets.annotated import ImageList
from train.evals.frozen.extraction.arrays import PassFiles
from train.evals.frozen.extraction.extract import extract, format_bytes, specs_of
from train.evals.frozen.extraction.requests import PassRequest, SharedPasses
from train.evals.frozen.protocol import Clock, Finding, SplitFeatures, Task
from train.evals.frozen.scoring.evaluation import Cell, FrozenEvaluation
from train.evals.frozen.scoring.pictures import scores_sheet
from train.evals.frozen.scoring.plan import data_fingerprint, settings_of
from train.evals.frozen.scoring.stored import set_aside_outdated, stored_scores
from train.models.frozen import FrozenModel

LOCK_NAME = ".lock"


class Scoring:
    """Runs an evaluation on this rank.

    Attributes:
        used: the files of every pass that was read, by folder.
        scores: of every result, once `run` has ended on the main rank.
    """

    def __init__(self, evaluation: FrozenEvaluation) -> None:
        self._of, self._world = evaluation, evaluation.world
        self._passes = SharedPasses(self._world, self._do)
        self._pending: list[Cell] = []
        self._built: tuple[tuple[int, int, int, int], FrozenModel] | None = None
        self.used: dict[Path, PassFiles] = {}
        self._there: set[tuple[Path, str]] = set()  # folders, and arrays that were found whole in them
        self.scores: dict[Cell, Scores] = {}

    def run(self) -> None:
        """Make every result that is not there, on the main rank; others take part in its passes."""
        if not self._world.is_main:
            self._passes.serve()
            return
        with ExitStack() as held:
            for folder in dict.fromkeys((self._of.out, self._of.features)):
                busy = f"another evaluation works in {folder}; wait for it, or choose another folder"
                held.enter_context(only_holder(folder / LOCK_NAME, otherwise=busy))
            self._passes.lead(self._score_all)

    def kept_features(self) -> str:
        """How much the passes that were read take on disk; empty where none was."""
        taken = sum(path.stat().st_size for files in self.used.values() for path in files.folder.glob("*.npy"))
        return format_bytes(taken) if taken else ""

    def remove_features(self) -> None:
        """Remove the passes that were read."""
        for files in self.used.values():
            files.remove()

    def _score_all(self) -> None:
        self._set_aside()
        cells = self._of.cells
        for cell in cells:
            if (scores := self._finished(cell)) is not None:
                self.scores[cell] = scores
        self._pending = [cell for cell in cells if cell not in self.scores]
        if self._pending:
            (self._of.out / SUMMARY_NAME).unlink(missing_ok=True)
        if self.scores:
            say(f"{len(self.scores)} of {len(cells)} results are finished and unchanged")
        self._say_disk()
        for cell in [*self._pending]:
            began, title = time.monotonic(), f"[{len(self.scores) + 1}/{len(cells)}]"
            say(f"{title} {self._of.folder(cell).relative_to(self._of.out)}: {cell.protocol.title}")
            self.scores[cell] = self._score(cell)
            self._pending.remove(cell)
            shown = self.scores[cell].scores[cell.protocol.headline]
            value = "no score" if shown is None else f"{100 * shown:.2f} %"
            say(f"{title} {cell.protocol.headline} {value} in {format_seconds(time.monotonic() - began)}")

    def _say_disk(self) -> None:
        """What features will take at most, before anything is computed."""
        need, models = 0, dict[int, FrozenModel]()
        for request in self._of.requests_of(self._pending):
            if request.size not in models:
                models[request.size] = self._of.model_for_shapes(request.size)
            specs = specs_of(self._of.pass_of(request), models[request.size], request.arrays)
            need += sum(spec.num_bytes for spec in specs.values())
        if need:
            say(f"features: up to {format_bytes(need)} in {self._of.features}")

    def _finished(self, cell: Cell) -> Scores | None:
        folder = self._of.folder(cell)
        scores = stored_scores(folder) if (folder / SCORES_NAME).is_file() else None
        return scores if scores is not None and scores.fingerprint == self._of.fingerprint_of(cell) else None

    def _set_aside(self) -> None:
        for number, image_set in enumerate(self._of.image_sets):
            for place, subject in enumerate(self._of.subjects):
                is_right = partial(self._is_right, number, place)
                set_aside_outdated(self._of.out, data=image_set.name, label=subject.label, is_right=is_right)

    def _is_right(self, image_set: int, subject: int, scores: Scores, seed: int) -> bool:
        """Whether results may stay. Of protocols that are not run now, those of the same weights may."""
        chosen = {protocol.name: protocol for protocol in self._of.image_sets[image_set].plan.chosen}
        if protocol := chosen.get(scores.protocol.name):
            return scores.fingerprint == self._of.fingerprint_of(Cell(image_set, subject, seed, protocol))
        return scores.weights.sha256 == self._of.subjects[subject].record.sha256

    def _score(self, cell: Cell) -> Scores:
        """Run one protocol and store what it found."""
        image_set, subject = self._of.image_sets[cell.image_set], self._of.subjects[cell.subject]
        clock = Clock()
        task = Task(
            data=image_set.data,
            settings=settings_of(self._of.settings, cell.protocol),
            features=lambda part, level, size: self._features(cell, clock, part, level, size),
            seed=cell.seed,
            device=self._world.device,
            load_model=lambda: self._model(
                cell.image_set, cell.subject, cell.seed, settings_of(self._of.settings, cell.protocol).size
            ),
            num_clusters=subject.num_clusters,
            clock=clock,
        )
        with clock.phase("rest"):
            finding = self._of.functions[cell.protocol.name](task)
        headline = cell.protocol.headline
        assert _equal(score_of(finding.per_image[headline]), finding.scores[headline]), cell.protocol.name
        folder = self._of.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        with clock.phase("pictures"):
            self._draw(cell, finding, folder)
        write_scores(
            folder,
            self._members(cell, finding, clock),
            names=image_set.data.val.names,
            counts=finding.per_image,
        )
        scores = read_scores(folder)
        assert scores is not None
        return scores

    def _draw(self, cell: Cell, finding: Finding, folder: Path) -> None:
        if finding.predict is None:
            return
        counts, images = finding.per_image[cell.protocol.headline], self._of.image_sets[cell.image_set].data.val
        if picture := scores_sheet(images, counts, finding.predict, cell.protocol.needs):
            write_atomic(folder / PREDICTIONS_NAME, picture)

    def _members(self, cell: Cell, finding: Finding, clock: Clock) -> dict[str, Any]:
        """What `results.json` says."""
        image_set, protocol = self._of.image_sets[cell.image_set], cell.protocol
        data = image_set.data
        lists: dict[str, ImageList] = {"val": data.val, **({"train": data.train} if data.train else {})}
        return {
            "fingerprint": self._of.fingerprint_of(cell),
            "protocol": {
                "id": protocol.id,
                "name": protocol.name,
                "headline": protocol.headline,
                "settings": self._of.settings_of(cell),
            },
            "weights": self._of.subjects[cell.subject].record.model_dump(mode="json"),
            "data": {
                "name": image_set.name,
                "layout": data.layout,
                "fingerprint": data_fingerprint(data, protocol),
                "images": {part: len(images.names) for part, images in lists.items()},
                "notes": list(data.notes),
            },
            "seed": cell.seed,
            "scores": {**finding.scores, **self._reported(finding)},
            "per_class": {name: dict(values) for name, values in finding.per_class.items()},
            "chosen": dict(finding.chosen),
            "seconds": {name: round(seconds, 3) for name, seconds in clock.seconds.items()},
            "versions": {
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
                "device": self._world.device.type,
            },
        }

    def _reported(self, finding: Finding) -> dict[str, float | None]:
        """Of each score by class, its mean over `report_classes`, where these are given."""
        names, reported = self._of.settings.report_classes, {}
        for score, values in finding.per_class.items() if names else ():
            found = [value for name in names if (value := values.get(name)) is not None]
            reported[f"report_{score}"] = sum(found) / len(found) if found else None
        return reported

    def _features(self, cell: Cell, clock: Clock, part: DataPart, level: Level, size: int) -> SplitFeatures:
        of_images = cell.protocol.needs == "class_id"
        request = self._of.request(cell, part, size, () if of_images else (level,))
        planned = self._of.requests_of(other for other in self._pending if other[:2] == cell[:2])
        alike = [other for other in planned if replace(other, arrays=request.arrays) == request]
        arrays = {name for one in (request, *alike) for name in one.arrays}
        with clock.phase("features"):
            files = self._passes.ask(self._of.request(cell, part, size, arrays))
        images = self._of.image_sets[cell.image_set].images(part)
        cells = np.empty((len(images.names), 0, 0, 0), np.float16) if of_images else files.open(level)
        return SplitFeatures(images=images, cells=cells, pooled=files.open("pooled"))

    def _do(self, request: PassRequest) -> PassFiles:
        task = self._of.pass_of(request)
        folder = self._of.features / task.fingerprint[:16]
        if all((folder, name) in self._there for name in request.arrays):
            return self.used[folder]
        self.used[folder] = extract(
            task,
            folder,
            arrays=request.arrays,
            load_model=lambda: self._model(request.data, request.subject, request.seed, request.size),
            world=self._world,
        )
        self._there |= {(folder, name) for name in request.arrays}
        return self.used[folder]

    def _model(self, image_set: int, subject: int, seed: int, size: int) -> FrozenModel:
        """The network; the one that was built last is kept."""
        key = (image_set, subject, self._of.weights_seed(subject, seed), size)
        if self._built is None or self._built[0] != key:
            self._built = None  # its memory first
            data, settings = self._of.image_sets[image_set].data, self._of.settings.features
            model = self._of.subjects[subject].build(data, settings, seed=key[2], size=size, device=self._world.device)
            self._built = (key, model)
        return self._built[1]


def _equal(first: float | None, second: float | None) -> bool:
    return first == second or (first is not None and second is not None and math.isclose(first, second, rel_tol=1e-9))
