"""Files that evaluations read and write: one of each, and what reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import Results, encode_results
from pipeline.artifacts.scores import ImageCounts, read_counts, read_scores, write_scores
from pipeline.foundation.errors import InputError
from pipeline.report.measured import read_measurements
from pipeline.report.one_run import findings_of_run
from tests.fuzz.target import Refused, Target
from train.evals.datasets.layouts.coco_json import read_instances, read_panoptic
from train.evals.datasets.layouts.voc_boxes import boxes_of_voc
from train.evals.frozen.scoring.summary import SummaryRow, write_summary
from train.evals.segmentation.voc_folder import VocFolder
from train.evals.trials import Outcome, Trial, TrialSet
from train.models.backbone_file import ExportedBackbone


def results(root: Path) -> Target:
    spread = {"miou": {"mean": 0.5, "std": None, "n": 1}, "by_seed": {"0": {"miou": 0.5}}}
    members = {
        "format_version": 2,
        "fingerprint": fingerprint(x=1),
        "protocol": {"epochs": 3},
        "backbone": {"name": "resnet18", "run_fingerprint": "f" * 64},
        "versions": {"torch": "2"},
        "inits": {"run": spread, "random": spread},
    }
    path = root / "results.json"
    path.write_text(encode_results(members))
    return Target(path, lambda: Results.read(path))


def a_score(root: Path) -> Path:
    members = {
        "fingerprint": "f" * 64, "seed": 0, "scores": {"miou": 0.5}, "per_class": {}, "chosen": {}, "seconds": {},
        "protocol": {"id": "r2o.knn/1", "name": "knn", "headline": "miou", "settings": {"k": [1, 3]}}, "versions": {},
        "weights": {
            "label": "w", "backbone": "resnet18", "format": "timm", "sha256": "0" * 64, "batch_norm": "weights",
            "loaded": 1.0,
        },
        "data": {"name": "d", "layout": "voc", "fingerprint": "d" * 64, "images": {"val": 2}, "notes": ["n"]},
    }  # fmt: skip
    write_scores(root, members, names=("a", "b"), counts={"miou": ImageCounts("iou", np.eye(2), np.ones((2, 2)))})
    return root / "results.json"


def scores(root: Path) -> Target:
    path = a_score(root)

    def read() -> Any:
        measurements, damaged = read_measurements([path])
        if damaged:
            raise InputError(damaged[0])
        return [vars(one) for one in measurements]

    return Target(path, read)


def summary(root: Path) -> Target:
    found = read_scores(a_score(root).parent)
    assert found is not None
    path = write_summary(SimpleNamespace(out=root), [SummaryRow("d", "knn", "miou", {"w": [found]})])  # type: ignore[arg-type]

    def read() -> Any:
        findings = findings_of_run([path], resamples=0)
        assert findings is not None
        return [vars(one) for column in findings.table.columns for one in column.measurements]

    return Target(path, read)


def image_counts(root: Path) -> Target:
    found = read_scores(a_score(root).parent)
    assert found is not None
    return Target(root / "per_image.npz", lambda: read_counts(root, found))


def trial(root: Path) -> Target:
    weights = ExportedBackbone(name="resnet18", mean=(0.0,), std=(1.0,), fingerprint="f" * 64, state_dict={})
    trials = TrialSet(
        inits=("run",),
        seeds=(0,),
        protocol={},
        version=1,
        data={},
        backbone=weights,
        backbone_sha256="0" * 64,
        folder=root,
    )
    png = io.BytesIO()
    Image.new("L", (3, 3)).save(png, "PNG")
    outcome = Outcome({"confusion": [[5, 1], [2, 7]], "loss": [{"step": 0, "loss": 0.25}]}, png.getvalue())
    trials.records(lambda one: outcome, fits=lambda record: True)

    def again(one: Trial) -> Outcome:
        raise Refused("run-seed0.json: scored again")

    return Target(root / "run-seed0.json", lambda: trials.records(again, fits=lambda record: True))


def voc_mask(root: Path) -> Target:
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / "JPEGImages" / "a.jpg")
    mask = Image.fromarray(np.kron(rng.integers(0, 21, (4, 5), dtype=np.uint8), np.ones((10, 10), np.uint8)))
    mask.putpalette(list(range(256)) * 3)
    mask.save(root / "SegmentationClass" / "a.png")
    file = VocFolder.open(root).file("a")
    return Target(file.mask, lambda: file.read(21).sample.labels)


def voc_boxes(root: Path) -> Target:
    path = root / "a.xml"
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    path.write_text(f"<annotation><size><width>50</width><height>40</height></size><object>{box}</object></annotation>")
    return Target(path, lambda: boxes_of_voc(path, path.read_bytes(), size=(40, 50)), is_users=True)


def coco_instances(root: Path) -> Target:
    thing = {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "segmentation": [[1, 2, 3]]}
    return _coco_file(root / "instances_a.json", [thing], read_instances)


def coco_panoptic(root: Path) -> Target:
    segments = [{"id": i, "category_id": 2, "iscrowd": 0} for i in (1, 70000)]
    annotation = {"image_id": 7, "file_name": "a.png", "segments_info": segments}
    return _coco_file(root / "panoptic_a.json", [annotation], read_panoptic)


def _coco_file(path: Path, annotations: list[dict[str, Any]], read: Callable[[Path], Any]) -> Target:
    images = [{"id": 7, "file_name": "a.jpg", "width": 50, "height": 40}]
    categories = [{"id": 2, "name": "dog"}, {"id": 5, "name": "cat"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return Target(path, lambda: read(path), is_users=True)


EVALUATION_TARGETS: tuple[Callable[..., Target], ...] = (
    results, scores, summary, image_counts, trial, voc_mask, voc_boxes, coco_instances, coco_panoptic,
)  # fmt: skip
