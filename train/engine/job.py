"""A run that has been checked before a process group is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.manifest import Manifest
from train.config.batches import BatchPlan, plan_batches, run_target_ema
from train.config.pretrain import PretrainSettings
from train.data.shards.open import check_shards, describe_reading, open_shards
from train.data.shards.reader import ShardReader
from train.engine.precision import settle_precision
from train.models.weights.init import Init, load_init
from train.run.folder import RunFolder
from train.run.log import require_loggers


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run that has been checked: settings and shards fit together. The main rank checks the run folder it holds.

    Attributes:
        precision: what is to be said of `run.precision: auto`.
    """

    folder: RunFolder
    plan: BatchPlan
    reader: ShardReader
    reading: str
    problems: tuple[str, ...]
    init: Init | None = None
    precision: str = ""

    @property
    def settings(self) -> PretrainSettings:
        """Those of the run, of the global batch that its ranks make."""
        return self.folder.settings


def check_job(
    settings: PretrainSettings, *, shards: str, run: Path, num_ranks: int, node_ranks: range, init: Path | None = None
) -> Job:
    """Everything that can be known to be wrong before a process group is built; reads small files only.

    Args:
        shards: path or URL.
        node_ranks: the ranks of this node.
        init: weights that the backbone begins with, see `train.models.weights.init.load_init`.
    Raises:
        InputError: shards, settings and number of ranks do not fit together.
    """
    settings, precision = settle_precision(settings.fitted_to(num_ranks), run)
    require_loggers(settings)
    manifest = Manifest.read(shards)
    if not settings.data.accept_over_limit:
        manifest.require_within_limit(shards, unless="pretrain.data.accept_over_limit=true")
    plan = plan_batches(settings, num_samples=manifest.stored, num_ranks=num_ranks)
    reader = open_shards(shards, manifest, settings.data)
    problems = check_shards(reader, settings)
    name, size = settings.model.backbone, settings.data.image_size
    weights = load_init(init, name, image_size=size) if init is not None else None
    return Job(
        folder=RunFolder(run, settings, manifest, init),
        plan=plan,
        reader=reader,
        reading=describe_reading(reader, settings, node_ranks=node_ranks, num_ranks=num_ranks),
        problems=tuple(problems),
        init=weights,
        precision=precision,
    )


def what_starts(job: Job, first_step: int | None) -> list[str]:
    """What is worth saying before the first step, line by line.

    Args:
        first_step: from which a run goes on; None where it begins.
    """
    plan, run = job.plan, job.settings.run
    lines = [job.reading, *filter(None, [job.precision]), *(f"going on without: {one}" for one in job.problems)]
    if job.init is not None:
        absent = f", but for {', '.join(job.init.absent)}, which it does not have" if job.init.absent else ""
        lines.append(f"the backbone begins with {job.folder.init}, read as {job.init.format}{absent}: {job.init.told}")
    if plan.accumulation > 1:
        lines.append(
            f"WARNING: {plan.accumulation} passes a step: batch norm sees {plan.local_batch_size * plan.num_ranks} "
            f"images at a time, not the global batch of {plan.global_batch_size}"
        )
    if run.on_other_batch == "scale":
        lines.append(
            f"global batch {plan.global_batch_size}: peak learning rate {job.settings.peak_lr:g}, "
            f"target_ema {run_target_ema(job.settings, 0, plan):.5f} at the start"
        )
    if first_step is not None:
        epoch, position = divmod(first_step, plan.steps_per_epoch)
        lines.append(f"going on after step {first_step} (epoch {epoch}, {position} steps in)")
    return lines
