"""Pretrain: build → resume → loop → save. (`r2o pretrain` starts it.)

By hand: `torchrun --nproc-per-node 8 -m -- train.pretrain --shards … --run … --config …`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from pipeline.artifacts.errors import InputError, exit_code_of
from pipeline.artifacts.files import write_atomic
from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.progress import Progress
from pipeline.artifacts.settings import dump_settings, load_settings
from train.checkpoint import restore_checkpoint, save_checkpoint
from train.clock import StepClock
from train.config import BatchPlan, PretrainSettings, plan_batches
from train.data.device import device_batches
from train.data.loader import host_batches
from train.data.skipped import SkippedLog, require_few_skipped
from train.data.source import check_shards, describe_reading, max_superpixels, open_shards
from train.data.stream import ShardReader, Skipped
from train.distributed import (
    World,
    distribute,
    gather_rows,
    node_ranks,
    sum_over_ranks,
    texts_of_all,
    wait_for_all,
    world_from_environment,
)
from train.export import BACKBONE_NAME, save_backbone
from train.metrics import RunLog
from train.optim import LARS
from train.panels import Panels, draw_curves
from train.step import StepFigures, build_model, build_optimizer, train_step, unwrapped

CONFIG_NAME = "config.yaml"
MAIN_SPEAKS_FIRST = 10.0  # seconds
RECORD_NAME = "run.json"  # settings' fingerprint, versions, commit and command


def run_fingerprint(settings: PretrainSettings, manifest: Manifest) -> str:
    """What decides the weights of a run: its settings but for how it is watched, and its shards."""
    return fingerprint(settings=settings.content(), shards=manifest.fingerprint)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that has been checked: settings, shards and run folder fit together."""

    settings: PretrainSettings
    manifest: Manifest
    plan: BatchPlan
    reader: ShardReader
    reading: str
    problems: tuple[str, ...]
    run: Path
    fingerprint: str


def check_job(settings: PretrainSettings, *, shards: str, run: Path, num_ranks: int, node_ranks: range) -> Job:
    """Everything that can be known to be wrong before a process group is built; reads small files only.

    Args:
        shards: path or URL.
        node_ranks: the ranks of this node.
    Raises:
        InputError: shards, run folder, settings and number of ranks do not fit together.
    """
    manifest = Manifest.read(shards)
    if not settings.data.accept_over_limit:
        manifest.require_within_limit(shards, unless="pretrain.data.accept_over_limit=true")
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=num_ranks)
    reader = open_shards(shards, manifest, settings.data)
    problems = check_shards(reader, settings)
    identity = run_fingerprint(settings, manifest)
    _check_run_folder(run, settings, identity)
    return Job(
        settings=settings,
        manifest=manifest,
        plan=plan,
        reader=reader,
        reading=describe_reading(reader, settings, node_ranks=node_ranks, num_ranks=num_ranks),
        problems=tuple(problems),
        run=run,
        fingerprint=identity,
    )


def pretrain(job: Job, world: World) -> None:
    """Train to the end from the newest checkpoint, and leave `backbone.pt`."""
    settings = job.settings
    if world.is_main:
        _describe_run(job)
        for line in (job.reading, *(f"going on without: {problem}" for problem in job.problems)):
            print(f"pretrain: {line}", file=sys.stderr)
    wait_for_all(world)
    r2o = build_model(settings, max_superpixels=max_superpixels(job.manifest, settings)).to(world.device).train()
    r2o.gather = gather_rows(world)
    optimizer = build_optimizer(r2o, settings)
    first_step = restore_checkpoint(job.run, r2o, optimizer, fingerprint=job.fingerprint)
    if settings.run.channels_last:
        r2o = r2o.to(memory_format=torch.channels_last)
    _Loop(job, world, distribute(r2o, world), optimizer).train(first_step)
    if world.is_main:
        path = job.run / BACKBONE_NAME
        backbone = r2o.online["backbone"]
        save_backbone(
            path,
            backbone=backbone,
            name=settings.model.backbone,
            fingerprint=job.fingerprint,
        )
        print(f"pretrain: {job.plan.total_steps} steps done; backbone in {path}", file=sys.stderr)


class _Loop:
    """The steps of a run, and what is written between them."""

    def __init__(self, job: Job, world: World, model: nn.Module, optimizer: LARS) -> None:
        self.job, self.world, self.model, self.optimizer = job, world, model, optimizer
        self.settings, self.plan = job.settings, job.plan
        self.panels = Panels(job.reader, job.settings, world.device)

    def train(self, first_step: int) -> None:
        """Run all steps that are left after `first_step` steps."""
        plan, world = self.plan, self.world
        self.log = RunLog(self.job.run, first_step=first_step) if world.is_main else None
        self.skipped = SkippedLog(self.job.run, first_step=first_step) if world.is_main else None
        if first_step and world.is_main:
            epoch, position = divmod(first_step, plan.steps_per_epoch)
            print(f"pretrain: going on after step {first_step} (epoch {epoch}, {position} steps in)", file=sys.stderr)
        if first_step == 0:
            self._draw_panels(0)
        host = host_batches(
            self.job.reader,
            self.settings,
            range(first_step, plan.total_steps),
            rank=world.rank,
            num_ranks=world.size,
            node_ranks=node_ranks(),
            pin_memory=world.device.type == "cuda",
        )
        batches = device_batches(host, self.settings, world.device)
        progress = Progress("pretrain", plan.total_steps, "steps", done=first_step)
        clock = StepClock()
        for step, arrived in enumerate(clock.waiting(batches), start=first_step):
            figures = train_step(
                self.model, self.optimizer, arrived, step=step, settings=self.settings, plan=plan, world=world
            )
            if figures.skipped:
                self._note_skipped(step, arrived.host.skipped)
            self._tell(step, figures, clock, progress)
            self._end_step(step + 1)

    def _note_skipped(self, step: int, here: tuple[Skipped, ...]) -> None:
        """Name what any rank skipped; raises InputError on all of them once it is too much."""
        epoch = step // self.plan.steps_per_epoch
        texts = texts_of_all(json.dumps(here), self.world)
        count = 0
        if self.skipped is not None:
            self.skipped.write([Skipped(*one) for text in texts for one in json.loads(text)], step=step)
            count = self.skipped.count_in(epoch)
        require_few_skipped(
            int(sum_over_ranks(torch.tensor(count, device=self.world.device), self.world)),
            num_samples=self.plan.num_samples,
            max_fraction=self.settings.data.max_skipped_fraction,
            epoch=epoch,
        )

    def _tell(self, step: int, figures: StepFigures, clock: StepClock, progress: Progress) -> None:
        if self.log is None:
            return
        last = step + 1 == self.plan.total_steps
        epoch = step // self.plan.steps_per_epoch
        if step % self.settings.run.log_every_steps == 0 or last:
            speed = clock.since_last_report(self.plan.global_batch_size)
            self.log.write(step=step, epoch=epoch, **figures._asdict(), **speed)
        progress.advance(
            1,
            f"epoch {epoch + 1}/{self.plan.epochs}  loss {figures.loss:.4f}  K {figures.num_clusters}  "
            f"lr {figures.lr:.3g}  {clock.images_per_second(self.plan.global_batch_size):.3g} images/s  "
            f"data_wait {clock.data_wait:.1%}",
        )

    def _end_step(self, done: int) -> None:
        """What comes after some of the steps: panels, a checkpoint."""
        run, last = self.settings.run, done == self.plan.total_steps
        epoch, inside = divmod(done, self.plan.steps_per_epoch)
        if inside == 0 and (epoch % run.panels_every_epochs == 0 or last):
            self._draw_panels(epoch)
        due = inside == 0 and epoch % run.checkpoint_every_epochs == 0
        due |= run.checkpoint_every_steps is not None and done % run.checkpoint_every_steps == 0
        if self.world.is_main and (due or last):
            save_checkpoint(
                self.job.run,
                unwrapped(self.model),
                self.optimizer,
                step=done,
                fingerprint=self.job.fingerprint,
                keep=run.keep_checkpoints,
            )

    def _draw_panels(self, epoch: int) -> None:
        refined_maps = self.panels.refined_maps(unwrapped(self.model), epoch=epoch)
        if self.world.is_main:
            self.panels.draw(self.job.run, refined_maps, epoch=epoch)
            draw_curves(self.job.run)


def _check_run_folder(run: Path, settings: PretrainSettings, identity: str) -> None:
    """That the folder is new, or of this very run."""
    if run.exists() and not run.is_dir():
        raise InputError(f"{run} is a file; RUN must be a folder")
    record = run / RECORD_NAME
    if record.exists() and json.loads(record.read_bytes())["fingerprint"] != identity:
        theirs = load_settings(PretrainSettings, "pretrain", run / CONFIG_NAME).content()
        found = differences(settings.content(), theirs, "pretrain.") or ["other shards"]
        raise InputError(f"{run} holds another run ({'; '.join(found)}); choose another RUN")


def _describe_run(job: Job) -> None:
    job.run.mkdir(parents=True, exist_ok=True)
    write_atomic(job.run / CONFIG_NAME, dump_settings(pretrain=job.settings))
    description = {
        "fingerprint": job.fingerprint,
        "shards_fingerprint": job.manifest.fingerprint,
        "samples": job.manifest.stored,
        "num_ranks": job.plan.num_ranks,
        "command": sys.argv,
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        "git_commit": _git_commit(),
    }
    write_atomic(job.run / RECORD_NAME, json.dumps(description, indent=1) + "\n")


def _git_commit() -> str | None:
    """The checkout's commit; None outside a checkout or without git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of one rank."""
    parser = argparse.ArgumentParser(prog="python -m train.pretrain", description=__doc__)
    parser.add_argument("--shards", required=True, help="path or URL")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    settings = load_settings(PretrainSettings, "pretrain", arguments.config, arguments.overrides)
    try:
        num_ranks = int(os.environ.get("WORLD_SIZE", 1))
        job = check_job(
            settings, shards=arguments.shards, run=arguments.run, num_ranks=num_ranks, node_ranks=node_ranks()
        )
    except InputError:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(MAIN_SPEAKS_FIRST)  # every rank finds the same; torchrun stops the others when one ends
        raise
    with world_from_environment() as world:
        pretrain(job, world)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
