"""What a pretraining run costs, estimated from its settings without torch: arithmetic, memory, disk and time.

The tests compare every constant and every sum with what torch itself counts.
"""

from __future__ import annotations

import json
import math
import statistics
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.run_files import LOG_NAME
from pipeline.estimates.rates import BACKBONE, RATES, SOURCE, reached
from train.config.batches import BatchPlan, batch_bytes, sample_numbers
from train.config.pretrain import PretrainSettings

REFERENCE_SIZE = 224  # pixels
FLOAT, HALF = 4, 2  # bytes
LARGEST_MAP = 64 * 112**2  # elements of an image's largest feature map at 224 px
LIVE_MAPS = 3  # of that size and of each view that passes, while nothing is kept
USUAL_SUPERPIXELS = 100
RATE_LINES = 20


class Trunk(NamedTuple):
    """A backbone at 224 px. Multiply-adds of one image up to C4 and to C5, and the bytes it keeps for the backward."""

    parameters: int
    c4_channels: int
    c5_channels: int
    c4_macs: int
    c5_macs: int
    kept_fp32: int
    kept_bf16: int


TRUNKS = {
    "resnet18": Trunk(11_176_512, 256, 512, 1_402_519_552, 1_813_561_344, 22_177_792, 11_891_712),
    "resnet34": Trunk(21_284_672, 256, 512, 3_020_996_608, 3_663_249_408, 32_212_992, 16_909_312),
    "resnet50": Trunk(23_508_032, 1024, 2048, 3_277_897_728, 4_087_136_256, 85_901_312, 43_753_472),
    "resnet101": Trunk(42_500_160, 1024, 2048, 6_990_118_912, 7_799_357_440, 126_844_928, 64_225_280),
    "resnet152": Trunk(58_143_808, 1024, 2048, 10_702_340_096, 11_511_578_624, 177_422_336, 89_513_984),
    "vit_s_16": Trunk(23_583_360, 384, 384, 4_858_610_688, 4_887_512_064, 59_702_152, 33_680_776),
    "vit_b_16": Trunk(93_467_904, 768, 768, 18_603_509_760, 18_719_115_264, 118_762_792, 67_021_096),
}


class Parameters(NamedTuple):
    """How many there are of each part."""

    backbone: int
    projector: int
    predictor: int

    @property
    def online(self) -> int:
        """What is learned."""
        return sum(self)

    @property
    def target(self) -> int:
        """What follows it."""
        return self.backbone + self.projector


def count_parameters(settings: PretrainSettings) -> Parameters:
    """The networks of a run, exactly."""
    model, trunk = settings.model, TRUNKS[settings.model.backbone]
    hidden, out = model.head_hidden_size, model.projection_size
    backbone, bias = trunk.parameters, out if model.head_output_bias else 0
    if model.backbone.startswith("vit"):  # a position embedding a patch
        backbone += trunk.c5_channels * ((settings.data.image_size // 16) ** 2 - (REFERENCE_SIZE // 16) ** 2)
    projector, predictor = (width * hidden + 3 * hidden + hidden * out + bias for width in (trunk.c5_channels, out))
    return Parameters(backbone, projector, 0 if settings.objective.loss == "nt_xent" else predictor)


def image_flops(settings: PretrainSettings, *, num_clusters: int, masks: float) -> float:
    """Floating-point operations of one image in a step; a multiply-add is two, a backward pass two forward ones.

    Args:
        masks: that go through the heads.
    """
    trunk, refine = TRUNKS[settings.model.backbone], settings.refine
    contrast_of_one = settings.objective.loss == "nt_xent"
    views = 2 * (3 if contrast_of_one else 4) * trunk.c5_macs * _area(settings.data.view_size)
    hidden, out = settings.model.head_hidden_size, settings.model.projection_size
    projector, predictor = trunk.c5_channels * hidden + hidden * out, 2 * hidden * out
    heads = 2 * masks * (3 * projector if contrast_of_one else 4 * projector + 3 * predictor)
    refinement = 0.0
    if refine.clustering == "kmeans" and settings.objective.view_masks == "refined":
        cells = math.ceil(settings.data.image_size / 16) ** 2
        regions = cells if refine.regions == "cells" else _num_regions(settings, num_clusters)
        distances = (refine.kmeans_iterations + 1) * regions + cells
        refinement = trunk.c4_macs * _area(settings.data.image_size) + distances * num_clusters * trunk.c4_channels
    return 2 * (views + heads + refinement)


def usual_masks(settings: PretrainSettings, num_clusters: int) -> float:
    """Masks of an image that go through the heads: all, as many as are sampled, or about √K that are in both views.

    12.0 were at K = 128 and 2.6 at K = 4, with a fresh ResNet-50 on photographs (docs/benchmarks.md).
    """
    if settings.objective.loss != "byol":
        return settings.objective.masks_per_view
    made = num_clusters if settings.refine.clustering == "kmeans" else _num_regions(settings, num_clusters)
    return made if settings.objective.rows == "all" else math.sqrt(made)


def run_flops(settings: PretrainSettings, plan: BatchPlan) -> float:
    """Floating-point operations of the whole run, over all ranks."""
    clusters = [settings.num_clusters(epoch) for epoch in range(settings.epochs)]
    images = plan.steps_per_epoch * plan.global_batch_size
    return images * sum(image_flops(settings, num_clusters=k, masks=usual_masks(settings, k)) for k in clusters)


def device_memory(settings: PretrainSettings, plan: BatchPlan) -> dict[str, float]:
    """Bytes on a device at the end of the forward passes, by what takes them; neither workspaces nor fragmentation.

    `weights`: of both networks, gradients, momentum, and half-precision copies. `activations`: of both views and
    the heads, for the backward pass, and what passes through the target meanwhile. `batches`: one computed with, one
    made ready. Refinement is over by then, and takes less.
    """
    count, trunk, model = count_parameters(settings), TRUNKS[settings.model.backbone], settings.model
    half = precision_of(settings) in ("bf16", "fp16")
    word = HALF if half else FLOAT
    area = _area(settings.data.view_size)
    most = max(settings.curriculum.initial_num_clusters, settings.curriculum.final_num_clusters)
    row = trunk.c5_channels + model.projection_size + 4 * model.head_hidden_size
    kept = 2 * area * (trunk.kept_bf16 if half else trunk.kept_fp32) + 2 * usual_masks(settings, most) * row * word
    passing = LIVE_MAPS * (1 if plan.num_ranks == 1 else 2)  # several ranks pass both views at once
    return {
        "activations": plan.local_batch_size * (kept + passing * LARGEST_MAP * area * word),
        "weights": FLOAT * (3 * count.online + count.target) + (HALF * count.online if half else 0),
        "batches": 2 * plan.local_batch_size * sample_numbers(settings.data) * (word + 1),
    }


def precision_of(settings: PretrainSettings) -> str:
    """`run.precision`; in place of `auto` what it becomes on the accelerators of the estimate."""
    return "bf16" if settings.run.precision == "auto" else settings.run.precision


def checkpoint_bytes(settings: PretrainSettings) -> int:
    """One checkpoint: both networks and momentum."""
    count = count_parameters(settings)
    return FLOAT * (2 * count.online + count.target)


def cost_rows(settings: PretrainSettings, plan: BatchPlan, run: Path | None = None) -> dict[str, str]:
    """What a run costs, as text by name.

    Args:
        run: where it is under way, its log tells the time that is left.
    """
    count, memory = count_parameters(settings), device_memory(settings, plan)
    total, disk = run_flops(settings, plan), checkpoint_bytes(settings)
    data, keep, milestones = settings.data, settings.run.keep_checkpoints, _milestones(settings)
    waiting = batch_bytes(data, plan.local_batch_size) * data.num_workers * data.prefetch_batches
    return {
        "parameters": f"{_millions(count.online)} = backbone {_millions(count.backbone)} + projector "
        f"{_millions(count.projector)} + predictor {_millions(count.predictor)}; target {_millions(count.target)}",
        "compute": f"{total / max(plan.total_steps, 1) / 1e12:,.4g} TFLOP a step, {total / 1e18:,.4g} EFLOP in all",
        "memory": f"about {_gb(sum(memory.values()))} a device: "
        + ", ".join(f"{name} {_gb(size)}" for name, size in memory.items()),
        "host memory": f"{_gb(waiting)} a process of shared memory: {data.num_workers} workers × "
        f"{data.prefetch_batches} batches",
        "checkpoint": f"{_gb(disk)}, and so much memory while it is written; {keep} and {milestones} milestones are "
        f"kept: {_gb((keep + milestones + 1) * disk)} of disk",
        "time": _measured_time(plan, run) or _usual_time(settings, plan, total),
    }


def _usual_time(settings: PretrainSettings, plan: BatchPlan, flops: float) -> str:
    """The time at the operations a second that supervised training of the same network reaches, where that is known."""
    name, precision = settings.model.backbone, precision_of(settings)
    own = "--run tells a run's own rate"
    known = {gpu: by[precision] for gpu, by in RATES.items() if precision in by} if name == BACKBONE else {}
    if not known:
        return f"not estimated: no published rate of {name} in {precision} is known here ({own})"
    macs, times, shares = TRUNKS[name].c5_macs, [], []
    for gpu, published in known.items():
        speed = reached(published, macs)
        times.append(f"{_duration(flops / (plan.num_ranks * speed))} on {plan.num_ranks} × {gpu}")
        shares.append(f"{speed / published.peak / 1e10:.0f}")
    return (
        f"{', '.join(times)}, estimated, not measured: at {', '.join(shares)} % of their peak, as others train "
        f"ResNet-50 on one ({SOURCE}; {own})"
    )


def _measured_time(plan: BatchPlan, run: Path | None) -> str | None:
    """The time that is left by the median rate of a run's last reports; None where it has no log."""
    log = _read_rates(run / LOG_NAME) if run else []
    if not log:
        return None
    done = log[-1][0] + 1
    rate = statistics.median(rate for _, rate in log[-RATE_LINES:])
    left = (plan.total_steps - done) * plan.global_batch_size / rate
    return f"{_duration(left)} left after step {done:,} of {plan.total_steps:,}, at {rate:,.4g} images/s as measured"


def _read_rates(path: Path) -> list[tuple[int, float]]:
    """(step, images per second) of a log's whole lines; a kill may have cut the last one short."""
    rates = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            rates.append((int(record["step"]), float(record["images_per_second"])))
    return rates


def _milestones(settings: PretrainSettings) -> int:
    every = settings.run.milestone_every_epochs
    return settings.epochs // every if every else 0


def _num_regions(settings: PretrainSettings, num_clusters: int) -> int:
    rows, columns = settings.refine.grid or (1, num_clusters)
    return {"superpixels": USUAL_SUPERPIXELS, "grid": rows * columns, "image": 1}[settings.refine.regions]


def _area(size: int) -> float:
    return (size / REFERENCE_SIZE) ** 2


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours / 24:.3g} days" if hours > 48 else f"{hours:.3g} h" if hours > 1 else f"{hours * 60:.3g} min"
