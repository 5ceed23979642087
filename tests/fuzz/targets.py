"""Every kind of file that is read: one of it, and what reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.results import Results, encode_results
from pipeline.artifacts.sample import decode_label_map, encode_label_map
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings, load_settings
from pipeline.states import StageState, read_state, write_state
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.second_try import unread_before
from preprocess.sources.list_images import list_images
from tests.train.conftest import write_images, write_shards
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.shards.files import ShardFiles
from train.engine.checkpoint import read_checkpoint
from train.evals.datasets.layouts.coco_json import read_instances, read_panoptic
from train.evals.datasets.layouts.voc_boxes import boxes_of_voc
from train.evals.segmentation.voc_folder import VocFolder
from train.evals.trials import Outcome, Trial, TrialSet
from train.models.backbone import make_backbone
from train.models.backbone_file import ExportedBackbone, read_backbone, save_backbone
from train.models.formats import to_format, write_weights
from train.models.weights.init import load_init
from train.run.folder import RunFolder, read_record, run_settings


class Target(NamedTuple):
    """A file, and what a command makes of it. `is_users`: another content is another input, and no fault."""

    path: Path
    read: Callable[[], Any]
    is_users: bool = False


class Refused(InputError):
    """What is found out is put right without a word: the content is not taken."""


def a_set(root: Path) -> Path:
    """Six images in shards of three."""
    write_images(root / "images", count=6)
    settings = {"images_per_shard": 3, "superpixels": {"backend": "grid", "size": 32}}
    write_shards(root / "images", root / "shards", ShardSettings.model_validate(settings))
    return root / "shards"


def a_job(root: Path, *, most: int | None = None) -> Callable[[], ShardJob]:
    """A job that made one shard of two, or all; gives what loads it again."""
    write_images(root / "images", count=6)
    (root / "images" / "class0" / "bad.jpg").write_bytes(b"no")
    settings = ShardSettings.model_validate(
        {"images_per_shard": 4, "superpixels": {"backend": "grid", "size": 32}, "max_bad_fraction": 1.0}
    )
    plan = Plan(list_images(root / "images"), settings)
    job = ShardJob(root / "shards", plan)
    job.load()
    job.begin()
    for number in job.pending()[:most]:
        job.record(make_shard(job.task(number), folder=job.folder))
    if most is None:
        job.finish()

    def loaded() -> ShardJob:
        again = ShardJob(root / "shards", plan)
        again.load()
        return again

    return loaded


def manifest(root: Path) -> Target:
    shards = a_set(root)
    return Target(shards / "manifest.json", lambda: Manifest.read(shards))


def index(root: Path) -> Target:
    shards = a_set(root)
    known = Manifest.read(shards)

    def read() -> list[object]:
        with closing(ShardFiles(str(shards), known)) as files:
            return [files.entry(0, row) for row in range(3)]

    return Target(shards / "r2o-000000.index", read)


def shard(root: Path) -> Target:
    shards = a_set(root)
    known = Manifest.read(shards)

    def read() -> bytes:
        with closing(ShardFiles(str(shards), known)) as files:
            return files.read(0, 0, known.shards[0].bytes)

    return Target(shards / "r2o-000000.tar", read)


def quarantine(root: Path) -> Target:
    loaded = a_job(root)

    def read() -> object:
        job = loaded()
        if job.pending():
            raise Refused("quarantine.jsonl is made again")
        return unread_before(job), (root / "shards" / "quarantine.jsonl").read_bytes()

    return Target(root / "shards" / "quarantine.jsonl", read)


def job_record(root: Path) -> Target:
    loaded = a_job(root, most=1)
    return Target(root / "shards" / ".job" / "job.json", lambda: loaded().results)


def job_note(root: Path) -> Target:
    loaded = a_job(root, most=1)
    return Target(root / "shards" / ".job" / "r2o-000000.tar.json", lambda: loaded().results)


def a_run(root: Path) -> Path:
    settings = PretrainSettings.model_validate({"global_batch_size": 32, "run": {"local_batch_size": 32}})
    run = RunFolder(root / "run", settings, Manifest.read(a_set(root)))
    run.path.mkdir()
    run.note_start(plan_batches(settings, num_samples=64, num_ranks=1), torch.device("cpu"), step=0)
    return run.path


def run_record(root: Path) -> Target:
    run = a_run(root)
    return Target(run / "run.json", lambda: read_record(run))


def run_config(root: Path) -> Target:
    run = a_run(root)
    return Target(run / "config.yaml", lambda: run_settings(run))


def users_config(root: Path) -> Target:
    path = root / "mine.yaml"
    path.write_text(dump_settings(pretrain=PretrainSettings()))
    return Target(path, lambda: load_settings(PretrainSettings, "pretrain", path), is_users=True)


def checkpoint(root: Path) -> Target:
    path, weights = root / "step-00000002.pt", {"a": torch.rand(40, 3), "b": torch.arange(5)}
    momenta = {"state": {0: {"momentum_buffer": torch.rand(40, 3)}}, "param_groups": [{"params": [0, 1]}]}
    head = {"format_version": 1, "fingerprint": "f" * 64, "step": 2, "seed": 0, "scaler": None}
    torch.save({**head, "model": weights, "optimizer": momenta}, path)
    return Target(path, lambda: read_checkpoint(path))


def backbone(root: Path) -> Target:
    torch.manual_seed(0)
    path = root / "backbone.pt"
    save_backbone(path, make_backbone("resnet18"), name="resnet18", fingerprint="f" * 64)
    return Target(path, lambda: vars(read_backbone(path)))


def exported(root: Path) -> Target:
    torch.manual_seed(0)
    path, weights = root / "out.safetensors", to_format(make_backbone("resnet18").state_dict(), "resnet18", "timm")
    write_weights(path, weights, "timm", metadata={"backbone": "resnet18"})
    return Target(path, lambda: load_init(path, "resnet18").weights)


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


def stage_state(root: Path) -> Target:
    (root / ".r2o").mkdir()
    parts = {"settings": {"seed": 0}, "inputs": {}, "needs": {}, "version": "x"}
    state = StageState(stage="shards", status="finished", fingerprint="0" * 64, parts=parts, command=("a", "b"))
    write_state(root, state)
    return Target(root / ".r2o" / "shards.json", lambda: read_state(root, "shards"))


def label_map(root: Path) -> Target:
    rng, path = np.random.default_rng(0), root / "map.png"
    path.write_bytes(encode_label_map(np.kron(rng.integers(0, 300, (8, 8)), np.ones((8, 8), int))))

    def read() -> np.ndarray:
        try:
            return decode_label_map(path.read_bytes())
        except ValueError as error:
            raise Refused(f"map.png: {error}") from None

    return Target(path, read)


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


TARGETS: tuple[Callable[..., Target], ...] = (
    manifest, index, shard, quarantine, job_record, job_note, run_record, run_config, users_config, checkpoint,
    backbone, exported, results, trial, stage_state, label_map, voc_mask,
    voc_boxes, coco_instances, coco_panoptic,
)  # fmt: skip
