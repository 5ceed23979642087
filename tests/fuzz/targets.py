"""Every kind of file that is read: one of it, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import decode_label_map, encode_label_map
from pipeline.foundation.settings import dump_settings, load_settings
from pipeline.states import StageState, read_state, write_state
from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.second_try import unread_before
from preprocess.sources.list_images import list_images
from tests.fuzz.evaluation_targets import EVALUATION_TARGETS
from tests.fuzz.target import Refused, Target
from tests.train.made_shards import write_images, write_shards
from train.config.batches import plan_batches
from train.config.pretrain import PretrainSettings
from train.data.shards.files import ShardFiles
from train.engine.checkpoint import read_checkpoint
from train.models.backbone import make_backbone
from train.models.backbone_file import read_backbone, save_backbone
from train.models.formats import to_format, write_weights
from train.models.weights.init import load_init
from train.run.folder import RunFolder, read_record, run_settings
from train.run.panels.frames import Frame, Refined, read_frame, write_frame


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


def panel_frame(root: Path) -> Target:
    labels = np.arange(24).reshape(2, 3, 4)
    write_frame(root, Frame(7, (24, 4), Refined(labels, labels % 4)))
    path = root / "step-00000007.npz"

    def read() -> list[object]:
        frame = read_frame(path)
        if frame is None:
            raise Refused("step-00000007.npz: the panel is drawn without it")
        return [frame.step, frame.num_clusters, *(maps.tolist() for maps in frame.masks)]

    return Target(path, read)


TARGETS: tuple[Callable[..., Target], ...] = (
    manifest, index, shard, quarantine, job_record, job_note, run_record, run_config, users_config, checkpoint,
    backbone, exported, stage_state, label_map, panel_frame, *EVALUATION_TARGETS,
)  # fmt: skip
