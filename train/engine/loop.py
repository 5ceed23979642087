"""The steps of a run, and what is written between them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from functools import partial

import torch

from pipeline.artifacts.run_files import BACKBONE_NAME, SKIPPED_NAME, not_finite_name
from pipeline.foundation.errors import AgreedError, InputError
from pipeline.foundation.files import write_atomic
from pipeline.foundation.progress import Progress, say
from train.data.device import LocalBatch, device_batches, end_of_queue
from train.data.loader import host_batches, whole_samples
from train.data.shards.open import max_superpixels
from train.data.shards.reader import Skipped
from train.data.shards.skipped import SkippedLog, require_few_skipped
from train.distributed.collectives import from_main, sum_over_ranks, texts_of_all
from train.distributed.environment import node_ranks
from train.distributed.world import World
from train.engine.build import Training, build_training, compile_backbones, distributed, uncompiled, unwrapped
from train.engine.checkpoint import Checkpoints, checkpoints, resume
from train.engine.job import Job, what_starts
from train.engine.memory import run_memory_named
from train.engine.same_job import require_same_job
from train.engine.step import NotFiniteError, StepFigures, train_step
from train.models.backbone_file import save_backbone
from train.run.clock import StepClock
from train.run.log import RunLog
from train.run.metrics import memory_gb
from train.run.panels.panels import Panels
from train.run.panels.pictures import draw_curves
from train.run.probe import Probe
from train.run.stopping import StopRequest, exit_code_after

SHOWN_KEYS = 8


def pretrain(job: Job, world: World, request: StopRequest) -> int:
    """Train from the newest checkpoint to the end, and leave `backbone.pt`.

    Args:
        request: says when to end before.
    Returns:
        the exit code: 0 at the end; EXIT_REQUEUE or EXIT_INTERRUPTED where a signal ended it in good order.
    """
    settings, folder, plan = job.settings, job.folder, job.plan
    require_same_job(job, world)
    with ExitStack() as held:
        with run_memory_named("before the first step", settings, plan, world):
            from_main(lambda: folder.hold(held), world)
            training = build_training(
                settings,
                plan,
                world,
                max_superpixels=max_superpixels(folder.manifest, settings),
                init=job.init.weights if job.init else None,
            )
            first_step = resume(folder.path, training, fingerprint=folder.fingerprint)
            if first_step > plan.total_steps:
                past = f"{folder.path} is at step {first_step}, but has {plan.total_steps}"
                raise AgreedError(f"{past}; choose another RUN")
            goes_on = bool(checkpoints(folder.path))
            saved = Checkpoints(folder.path, fingerprint=folder.fingerprint, keep=settings.run.keep_checkpoints)
            from_main(lambda: _begin(job, training, saved, first_step), world)
            if world.is_main:
                for line in what_starts(job, first_step if goes_on else None):
                    say(f"pretrain: {line}")
            if settings.run.compile:
                compile_backbones(unwrapped(training.model))
            loop = _Loop(job, distributed(training), saved, request)
        return loop.train(first_step)


def _begin(job: Job, training: Training, saved: Checkpoints, first_step: int) -> str:
    """Leave the first checkpoint, then the record that says that the run has begun. Gives ""."""
    if not checkpoints(job.folder.path):
        saved.save(training, step=0)
        saved.wait()
    return job.folder.note_start(job.plan, training.world.device, step=first_step)


class _Loop:
    """The steps of a run, and what is written between them."""

    def __init__(self, job: Job, training: Training, saved: Checkpoints, request: StopRequest) -> None:
        self.job, self.training, self.checkpoints, self.request = job, training, saved, request
        self.settings, self.plan, self.world = job.settings, job.plan, training.world
        self.run = job.folder.path
        self.panels = Panels(job.reader, job.settings, self.world.device)
        self.probe = Probe(job.reader, job.settings, self.world) if job.settings.run.probe_every_epochs else None

    def train(self, first_step: int) -> int:
        """Run all steps that are left after `first_step` steps; gives the exit code."""
        plan, world = self.plan, self.world
        run_id = f"{self.job.folder.fingerprint[:12]}-{self.run.name}"
        self.log = RunLog(self.run, self.settings, first_step=first_step, run_id=run_id) if world.is_main else None
        self.skipped: SkippedLog | None = None
        from_main(lambda: self._open_skipped(first_step), world)
        self.clock = StepClock(mark=partial(end_of_queue, self.world.device))
        if first_step == 0 and from_main(lambda: "" if self.panels.are_drawn(self.run, step=0) else "wanted", world):
            self._draw_panels(0)
        progress = Progress("pretrain", plan.total_steps, "steps", done=first_step)
        with closing(self.log) if self.log is not None else nullcontext():
            return self._steps(first_step, progress)

    def _open_skipped(self, first_step: int) -> str:
        self.skipped = SkippedLog(self.run, first_step=first_step)
        return ""

    def _steps(self, first_step: int, progress: Progress) -> int:
        plan, world = self.plan, self.world
        local_batches = self._local_batches(first_step)
        self.request.in_steps = True
        for step in range(first_step, plan.total_steps):
            asks = self.request.signal is not None or self.checkpoints.failed()
            try:
                with self._memory_named(f"step {step}"):
                    figures, skipped = train_step(self.training, local_batches, step=step, asks_to_stop=asks)
            except NotFiniteError as error:
                raise AgreedError(self._explain(error)) from None
            self.clock.done(plan.global_batch_size)
            if figures.skipped:
                self._note_skipped(skipped, step)
            with self.clock.apart("log"):
                self._tell(step, figures, progress)
            self._end_step(step + 1)
            if figures.asked_to_stop and step + 1 < plan.total_steps:
                return self._stop(step + 1)
        if self.log is not None and first_step < plan.total_steps:
            self._tell_times(self.log)
        from_main(self._finish, world)
        return 0

    def _memory_named(self, doing: str) -> AbstractContextManager[None]:
        return run_memory_named(doing, self.settings, self.plan, self.world)

    @contextmanager
    def _apart(self, name: str, done: int) -> Iterator[None]:
        """What is not a step of its own: its time is counted apart, and a lack of memory named."""
        with self.clock.apart(name), self._memory_named(f"{name} after step {done}"):
            yield

    def _local_batches(self, first_step: int) -> Iterator[LocalBatch]:
        """The rank's local batches of all steps that are left."""
        host = host_batches(
            self.job.reader,
            self.settings,
            range(first_step, self.plan.total_steps),
            local_batch_size=self.plan.local_batch_size,
            rank=self.world.rank,
            num_ranks=self.world.size,
            node_ranks=node_ranks(),
            pin_memory=self.world.device.type == "cuda",
        )
        read_again = whole_samples(self.job.reader, self.settings)
        local_batches = device_batches(host, self.settings, self.world.device, read_again)
        return self.clock.waiting(local_batches, lambda local_batch: local_batch.ready)

    def _note_skipped(self, skipped: list[Skipped], step: int) -> None:
        """Name what any rank skipped; raises AgreedError once it is too much."""
        epoch = step // self.plan.steps_per_epoch
        texts = texts_of_all(json.dumps(skipped), self.world)
        count = 0
        if self.skipped is not None and self.log is not None:
            with self.log.attempt(SKIPPED_NAME):
                self.skipped.write([Skipped(*one) for text in texts for one in json.loads(text)], step=step)
            count = self.skipped.count_in(epoch)
        count = int(sum_over_ranks(torch.tensor(count, device=self.world.device), self.world))
        most = self.settings.data.max_skipped_fraction
        try:
            require_few_skipped(count, num_samples=self.plan.num_samples, max_fraction=most, epoch=epoch)
        except InputError as error:
            raise AgreedError(str(error)) from None

    def _tell(self, step: int, figures: StepFigures, progress: Progress) -> None:
        if self.log is None:
            return
        last = step + 1 == self.plan.total_steps
        epoch = step // self.plan.steps_per_epoch
        if step % self.settings.run.log_every_steps == 0 or last:
            told = {name: value for name, value in figures._asdict().items() if name != "asked_to_stop"}
            speed = self.clock.since_last_report(num_ranks=self.world.size)
            here = {"memory_gb": memory_gb(self.world.device), "eta_seconds": progress.eta or 0.0}
            self.log.write(step=step, epoch=epoch, **told, **speed, **here)
        rate = self.clock.images_per_second
        progress.advance(
            1,
            f"epoch {epoch + 1}/{self.plan.epochs}  loss {figures.loss:.4f}  K {figures.num_clusters}  "
            f"lr {figures.lr:.3g}  {rate:.3g} images/s ({rate / self.world.size:.3g} a device)  "
            f"data_wait {self.clock.data_wait:.1%}",
        )

    def _tell_times(self, log: RunLog) -> None:
        """At the end: seconds from the first batch to the last step by what they went to, and of saves."""
        say(f"pretrain: where the time went: {self.clock.summary()}")
        seconds = {f"seconds_{name}": value for name, value in self.clock.seconds().items()}
        saves = {"saves": self.checkpoints.saves, "seconds_writing": self.checkpoints.seconds_writing}
        log.write(step=self.plan.total_steps - 1, epoch=self.plan.epochs - 1, **seconds, **saves)

    def _end_step(self, done: int) -> None:
        """What comes after some of the steps: panels, a probe, a checkpoint."""
        run, last = self.settings.run, done == self.plan.total_steps
        epoch, inside = divmod(done, self.plan.steps_per_epoch)
        if last or (inside == 0 and epoch % run.panels_every_epochs == 0) or _every(run.panels_every_steps, done):
            self._draw_panels(done)
        if last or (inside == 0 and _every(run.probe_every_epochs, epoch)):
            self._probe(done)
        milestone = inside == 0 and _every(run.milestone_every_epochs, epoch)
        due = milestone or last or (inside == 0 and epoch % run.checkpoint_every_epochs == 0)
        due = due or _every(run.checkpoint_every_steps, done) or self._checkpoint_is_old()
        if self.world.is_main and due:
            with self._apart("checkpoint", done):
                self.checkpoints.save(self.training, step=done, milestone=milestone)

    def _checkpoint_is_old(self) -> bool:
        minutes = self.settings.run.checkpoint_every_minutes
        return minutes is not None and time.monotonic() - self.checkpoints.saved_at > 60 * minutes

    def _draw_panels(self, done: int) -> None:
        epoch = max(done - 1, 0) // self.plan.steps_per_epoch
        with self._apart("panels", done), uncompiled():
            refined_maps = self.panels.refined_maps(unwrapped(self.training.model), epoch=epoch)
            if self.log is None:
                return
            with self.log.attempt("a panel"):
                path = self.panels.draw(self.run, refined_maps, step=done, epoch=epoch)
                draw_curves(self.run)
                self.log.picture(step=done, name="refined_masks", path=path)
            with self.log.attempt("the animation of the panels"):
                self.panels.animate(self.run, step=done)

    def _probe(self, done: int) -> None:
        if self.probe is None:
            return
        epoch = (done - 1) // self.plan.steps_per_epoch
        with self._apart("probe", done), uncompiled():
            figures = self.probe.figures(unwrapped(self.training.model), epoch=epoch)
            if self.log is not None and figures:
                self.log.write(step=done - 1, epoch=epoch, **figures)
                told = ", ".join(f"{name} {figure:.4f}" for name, figure in figures.items())
                say(f"pretrain: probe after step {done}: {told}")

    def _stop(self, done: int) -> int:
        """End after a step that some rank wanted to be the last: on disk is all that was done."""
        names = [*filter(None, texts_of_all(self.request.signal.name if self.request.signal else "", self.world))]
        from_main(lambda: self._save_now(done), self.world)
        assert names, "a checkpoint that failed has raised"
        if self.world.is_main:
            say(f"pretrain: {names[0]}: stopped after step {done}; the same command goes on from there")
        return exit_code_after(names[0])

    def _save_now(self, done: int) -> str:
        self.checkpoints.wait()
        if self.checkpoints.newest_step != done:
            self.checkpoints.save(self.training, step=done)
            self.checkpoints.wait()
        return ""

    def _finish(self) -> str:
        self.checkpoints.wait()
        path = self.run / BACKBONE_NAME
        backbone = unwrapped(self.training.model).online["backbone"]
        save_backbone(
            path, backbone=backbone, name=self.settings.model.backbone, fingerprint=self.job.folder.fingerprint
        )
        say(f"pretrain: {self.plan.total_steps} steps done; backbone in {path}")
        return ""

    def _explain(self, error: NotFiniteError) -> str:
        """Which rank, quantity and samples; the main rank also leaves it, whole, as a file."""
        found = [
            {**culprit._asdict(), "keys": [self.job.reader.key_of(i) for i in culprit.sample_ids]}
            for culprit in (error.culprits if self.world.is_main else ())
        ]
        path = self.run / not_finite_name(error.step)
        if self.log is not None:
            with self.log.attempt(path.name):
                write_atomic(path, json.dumps({"loss": str(error.loss), "culprits": found}, indent=1) + "\n")
        where = "; ".join(
            f"rank {one['rank']}: {one['quantity']}, of samples {', '.join(one['keys'][:SHOWN_KEYS])}"
            f"{' …' if len(one['keys']) > SHOWN_KEYS else ''}"
            for one in found
        )
        return (
            f"{error}, nothing was updated; not finite first on {where or 'no rank alone'} ({path.name} has all); "
            "lower pretrain.optim.base_lr, or look at these samples"
        )


def _every(interval: int | None, count: int) -> bool:
    return interval is not None and count % interval == 0
