"""Settings of pretraining (section `pretrain`) and of the VOC evaluation (section `eval_voc`).

Defaults are the paper's ImageNet-1K recipe (A.1) and its VOC protocol (A.2). No torch here: dry runs are instant.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import Settings
from train.r2o.schedules import learning_rate_at, num_clusters_at, scaled_target_ema, target_ema_at

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0)]
Range = tuple[float, float]

LR_BATCH_SIZE = 256  # base_lr is per this many images


def decoding_workers(requested: int) -> int:
    """Processes that decode: as many as asked for, at most one per core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(requested, cores)


class DataSettings(Settings):
    """What a sample looks like, in which order samples come, and what to do about trouble. Sizes in pixels.

    Attributes:
        lane_groups: parts of the set that feed parts of every global batch. As many as nodes: each node reads only its
            share of the shards, at some cost in mixing.
        view_superpixels: also crop the superpixels jointly with each view.
        superpixel_maps: further maps of the shards, by name, and their number of segments. Where there are any, the one
            nearest to K(t) (by ratio) is read in place of the superpixels.
        augment: where pixels are augmented. On the host they are rounded to uint8 again, as Pillow's transforms do.
        decode: where JPEGs are decoded and cropped; on a CUDA device by nvJPEG.
        on_damage: `fail` ends the run at the first sample that cannot be read; `skip` puts the next sample of the epoch
            in its place, names it in skipped.jsonl, and fails when more than `max_skipped_fraction` of an epoch are.
        cache: folder on this node's disk into which shards are copied before they are needed; without it shards behind
            a URL go to ~/.cache/r2o (or $R2O_CACHE), and those in a folder are read where they lie.
        verify: compare every shard's SHA-256 with the manifest before it is first used.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers", "prefetch_batches", "accept_over_limit", "on_damage", "max_skipped_fraction",
            "cache", "cache_gb", "verify", "retries",
        }
    )  # fmt: skip

    image_size: Positive = 224
    view_size: Positive = 224
    crop_scale: Range = (0.08, 1.0)
    crop_ratio: Range = (3 / 4, 4 / 3)
    view_superpixels: bool = False
    superpixel_maps: dict[str, Positive] = Field(default_factory=dict)
    augment: Literal["device", "host"] = "device"
    decode: Literal["host", "device"] = "host"
    shuffle_lanes: Positive = Field(64, description="places of the set that are read side by side")
    lane_groups: Positive = 1
    num_workers: Annotated[int, Field(ge=0)] = Field(4, description="decoding processes per rank, at most one per core")
    prefetch_batches: Positive = Field(2, description="batches that each of them has ready")
    accept_over_limit: bool = Field(False, description="use shards of which more images are bad than was allowed")
    on_damage: Literal["fail", "skip"] = "fail"
    max_skipped_fraction: Probability = Field(0.001, description="of the samples of an epoch")
    cache: Path | None = None
    cache_gb: Annotated[float, Field(gt=0)] = Field(32.0, description="what it may hold, in 1e9 bytes")
    verify: bool = True
    retries: Annotated[int, Field(ge=0)] = Field(3, description="of a read that fails")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shuffle_lanes % self.lane_groups:
            raise ValueError(f"shuffle_lanes {self.shuffle_lanes} is no multiple of lane_groups {self.lane_groups}")
        for name, (low, high) in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} {[low, high]} is not [low, high] with 0 < low <= high")
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)} goes beyond the whole image, 1")
        if self.decode == "device" and self.augment == "host":
            raise ValueError("augment: host needs decode: host; views that are cut on the device are augmented there")
        return self


def batch_bytes(data: DataSettings, local_batch_size: int) -> int:
    """Bytes of a host batch's pixels, or of its JPEGs at a usual 110 kB where the device decodes."""
    return local_batch_size * (sample_numbers(data) if data.decode == "host" else 110_000)


def sample_numbers(data: DataSettings) -> int:
    """Numbers in the whole image and both views of a sample."""
    return 3 * (data.image_size**2 + 2 * data.view_size**2)


class AugmentSettings(Settings):
    """BYOL's augmentations as the paper lists them (A.1). Pairs are (view 1, view 2)."""

    flip_probability: Probability = 0.5
    jitter_probability: Probability = 0.8
    brightness: Rate = 0.4
    contrast: Rate = 0.4
    saturation: Rate = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_probability: tuple[Probability, Probability] = (1.0, 0.1)
    blur_kernel_size: Positive = Field(23, description="pixels, odd")
    blur_sigma: Range = (0.1, 2.0)
    solarize_probability: tuple[Probability, Probability] = (0.0, 0.2)
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128

    @model_validator(mode="after")
    def _odd_kernel(self) -> Self:
        if self.blur_kernel_size % 2 == 0:
            raise ValueError(f"blur_kernel_size must be odd, not {self.blur_kernel_size}")
        return self


class ModelSettings(Settings):
    """Backbone and heads (Section 4, Architecture; BYOL's 4096 → 256 heads).

    Attributes:
        head_output_bias: the heads' last layer has a bias (authors' release).
        concatenate_views: both views in one forward pass, so that their batch statistics mix (authors' release).
    """

    backbone: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_s_16", "vit_b_16"
    ] = "resnet50"  # fmt: skip
    head_hidden_size: Positive = 4096
    projection_size: Positive = 256
    head_output_bias: bool = False
    concatenate_views: bool = False


class RefineSettings(Settings):
    """Region refinement (Section 3.1).

    Attributes:
        clustering: `none`: the regions themselves are the masks (Table 5's rows without refinement).
        regions: the prior: superpixels; equal rectangles; the cells of C4; the whole image as one.
        grid: rows and columns of `regions: grid`; null: the squarest grid of at most K cells.
    """

    clustering: Literal["kmeans", "none"] = "kmeans"
    regions: Literal["superpixels", "grid", "cells", "image"] = "superpixels"
    grid: tuple[Positive, Positive] | None = None
    clustering_group_size: Positive = Field(32, description="consecutive images of the global batch per K-means")
    kmeans_iterations: Positive = 10
    normalize_features: bool = Field(True, description="L2-normalise rows before K-means")
    assign: Literal["cell", "superpixel"] = "cell"

    @model_validator(mode="after")
    def _has_masks(self) -> Self:
        if self.clustering == "none" and self.regions == "cells":
            raise ValueError("regions: cells needs clustering: kmeans; for equal rectangles set regions: grid")
        return self


class ObjectiveSettings(Settings):
    """What is learned from the masks (Section 3.2, A.4).

    Attributes:
        loss: `byol` (Eqs. 4, 5); `detcon_b`; `nt_xent`: contrast without predictor and target network (A.4).
        view_masks: `refined` ones, aligned with each view, or `superpixels`, cropped jointly with it (DetCon).
        rows: which masks go through the heads: those `valid` in both views, or `all` (authors' release).
        min_pool_area: pooled features are divided by no less (cells); 1 in the authors' release.
        roi_aligned: RoIAlign's `aligned`; false in the authors' release, half a cell off.
        masks_per_view, temperature: of the contrastive losses. The paper states neither for A.4: 16 is DetCon's, 0.1
            DetCon's and SimCLR's.
    """

    loss: Literal["byol", "nt_xent", "detcon_b"] = "byol"
    view_masks: Literal["refined", "superpixels"] = "refined"
    rows: Literal["valid", "all"] = "valid"
    min_pool_area: Rate = 0.0
    roi_aligned: bool = True
    masks_per_view: Positive = 16
    temperature: Annotated[float, Field(gt=0)] = 0.1


class CurriculumSettings(Settings):
    """Number of clusters K by epoch (Section 3.3, Eq. A1)."""

    schedule: Literal["quarter_cosine", "linear", "piecewise", "constant"] = "quarter_cosine"
    initial_num_clusters: Positive = 128
    final_num_clusters: Positive = 4
    hold_epochs: Rate = 40


class OptimSettings(Settings):
    """LARS and its schedules (A.1, Optimization).

    Attributes:
        lars: `deepmind`'s form (BYOL's) or the authors' `release`'s; see `train.engine.lars.LARS`.
        lr_scale_by_clusters: the learning rate is also multiplied by K over this (authors' release: 16).
        target_ema_batch_size: base_target_ema is for batches of this size; τ becomes τ^(global_batch_size / it).
        target_update: `before_step` moves the target before the optimiser's step (authors' release).
    """

    base_lr: Rate = Field(0.3, description="per 256 images")
    warmup_epochs: Rate = 3
    momentum: Rate = 0.9
    weight_decay: Rate = 1e-6
    trust_coefficient: Rate = 1e-3
    base_target_ema: Probability = 0.99
    lars: Literal["deepmind", "release"] = "deepmind"
    lr_scale_by_clusters: Positive | None = None
    target_ema_batch_size: Positive | None = None
    target_update: Literal["after_step", "before_step"] = "after_step"


class RunSettings(Settings):
    """How a run is executed and watched; of these only `precision` and `channels_last` are content.

    Attributes:
        local_batch_size: images of one process and forward pass; null: whatever makes the global batch come out.
        accumulation: forward passes per step and process. Batch norm, and negatives of the contrastive losses, then see
            one pass at a time, not the global batch.
        on_other_batch: when local_batch_size × processes × accumulation is not global_batch_size: `stop`, or `scale`
            to what they make: the learning rate linearly, target_ema to τ^(batch made / batch of the recipe).
        precision: of the networks' passes; weights, updates, K-means and loss are float32. `fp16` scales the loss and
            skips the updates that overflow. `tf32` rounds float32 products on CUDA devices that can.
        compile: torch.compile of the backbones.
        milestone_every_epochs: the checkpoints at the ends of such epochs are never removed.
        checkpoint_every_minutes: also so long after the last one.
        collective_timeout_minutes: a process that waits longer for the others takes them for dead.
        probe_every_epochs: null: never. A probe (`train.run.probe`) costs one forward pass of its images, shared by the
            ranks, in fp32: a ninth of the arithmetic that training on as many takes.
        probe_images: of the shards, for nearest neighbours. Some ten a class tell something: 20,000 for ImageNet-1K.
        probe_masks: folder of VOC2012's layout whose `val` images have the masks that refined ones are compared with.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset(
        {
            "local_batch_size", "accumulation", "on_other_batch", "compile", "log_every_steps",
            "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints",
            "milestone_every_epochs", "panels_every_epochs", "panels_every_steps", "panel_images",
            "collective_timeout_minutes", "wandb_project", "probe_every_epochs", "probe_images", "probe_masks",
        }
    )  # fmt: skip

    local_batch_size: Positive | None = None
    accumulation: Positive = 1
    on_other_batch: Literal["stop", "scale"] = "stop"
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    log_every_steps: Positive = 10
    checkpoint_every_epochs: Positive = 1
    checkpoint_every_steps: Positive | None = Field(None, description="also within epochs")
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 15
    keep_checkpoints: Positive = Field(2, description="the newest; milestones are kept besides")
    milestone_every_epochs: Positive | None = 100
    panels_every_epochs: Positive = 10
    panels_every_steps: Positive | None = Field(None, description="also within epochs")
    panel_images: Positive = 8
    probe_every_epochs: Positive | None = 10
    probe_images: Positive = 1000
    probe_masks: Path | None = None
    collective_timeout_minutes: Annotated[float, Field(gt=0)] = 10
    wandb_project: str | None = Field(None, description="also tell Weights & Biases (extra `wandb`)")

    @model_validator(mode="after")
    def _scales_to_something(self) -> Self:
        if self.on_other_batch == "scale" and self.local_batch_size is None:
            raise ValueError("on_other_batch: scale needs local_batch_size")
        return self


class PretrainSettings(Settings):
    """One pretraining run."""

    seed: int = 0
    epochs: Positive = 300
    global_batch_size: Positive = 4096
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    model: ModelSettings = ModelSettings()
    refine: RefineSettings = RefineSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    curriculum: CurriculumSettings = CurriculumSettings()
    optim: OptimSettings = OptimSettings()
    run: RunSettings = RunSettings()

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.global_batch_size % self.refine.clustering_group_size:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of "
                f"refine.clustering_group_size {self.refine.clustering_group_size}"
            )
        if self.global_batch_size % self.data.lane_groups:
            raise ValueError(
                f"global_batch_size {self.global_batch_size} is no multiple of data.lane_groups {self.data.lane_groups}"
            )
        if self.objective.view_masks == "superpixels" and not self.data.view_superpixels:
            raise ValueError("objective.view_masks: superpixels needs data.view_superpixels: true")
        if self.model.backbone.startswith("vit"):
            size = self.data.image_size
            if size != self.data.view_size or size % 32:
                raise ValueError(f"{self.model.backbone} needs image_size = view_size, a multiple of 32, not {size}")
        if self.curriculum.hold_epochs >= self.epochs:
            raise ValueError(f"curriculum.hold_epochs {self.curriculum.hold_epochs} is not below epochs {self.epochs}")
        return self

    def fitted_to(self, num_ranks: int) -> PretrainSettings:
        """These settings or, with `run.on_other_batch: scale`, those of the global batch that `num_ranks` make.

        The learning rate follows by itself, since `base_lr` is per 256 images.

        Raises:
            InputError: that global batch holds no whole clustering groups.
        """
        run = self.run
        made = (run.local_batch_size or 0) * num_ranks * run.accumulation
        if run.on_other_batch == "stop" or made == self.global_batch_size:
            return self
        reference = self.optim.target_ema_batch_size or self.global_batch_size
        optim = self.optim.model_copy(update={"target_ema_batch_size": reference})
        try:
            return PretrainSettings.model_validate({**dict(self), "global_batch_size": made, "optim": optim})
        except ValidationError as error:
            raise InputError(f"{num_ranks} processes: {error.errors()[0]['msg']}") from None

    @property
    def peak_lr(self) -> float:
        """base_lr × global_batch_size / 256 (A.1)."""
        return self.optim.base_lr * self.global_batch_size / LR_BATCH_SIZE

    def superpixel_map(self, epoch: int) -> str | None:
        """The further map that is read in `epoch`; None for the superpixels."""
        maps = self.data.superpixel_maps
        wanted = math.log(self.num_clusters(epoch))
        return min(maps, key=lambda name: (abs(math.log(maps[name]) - wanted), maps[name]), default=None)

    def learning_rate(self, step: int, plan: BatchPlan) -> float:
        """The learning rate of a 0-based step."""
        lr = learning_rate_at(step, peak_lr=self.peak_lr, warmup_steps=plan.warmup_steps, total_steps=plan.total_steps)
        scale = self.optim.lr_scale_by_clusters
        return lr if scale is None else lr * self.num_clusters(step // plan.steps_per_epoch) / scale

    def target_ema(self, step: int, plan: BatchPlan) -> float:
        """τ of a 0-based step."""
        target_ema = target_ema_at(step, base_target_ema=self.optim.base_target_ema, total_steps=plan.total_steps)
        return scaled_target_ema(
            target_ema, batch_size=plan.global_batch_size, reference_batch_size=self.optim.target_ema_batch_size
        )

    def num_clusters(self, epoch: float) -> int:
        """K in `epoch` (0-based)."""
        curriculum = self.curriculum
        return num_clusters_at(
            epoch,
            schedule=curriculum.schedule,
            initial=curriculum.initial_num_clusters,
            final=curriculum.final_num_clusters,
            hold_epochs=curriculum.hold_epochs,
            total_epochs=self.epochs,
        )


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the samples of a set are cut into steps, and what each rank takes."""

    num_samples: int
    global_batch_size: int
    num_ranks: int
    accumulation: int = 1
    epochs: int
    warmup_epochs: float

    @property
    def local_batch_size(self) -> int:
        """Images per rank and forward pass; a step has `accumulation` of them."""
        return self.global_batch_size // (self.num_ranks * self.accumulation)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def total_steps(self) -> int:
        """Steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def warmup_steps(self) -> int:
        """Steps of the learning rate's warm-up."""
        return round(self.warmup_epochs * self.steps_per_epoch)


def plan_batches(settings: PretrainSettings, *, num_samples: int, num_ranks: int) -> BatchPlan:
    """The batch arithmetic of a run whose settings are `fitted_to` the ranks.

    Raises:
        InputError: fewer samples than one global batch, ranks that do not hold whole clustering groups, or a global
            batch that does not come out.
    """
    batch, group, run = settings.global_batch_size, settings.refine.clustering_group_size, settings.run
    if num_samples < batch:
        raise InputError(
            f"the shards hold {num_samples} samples, less than one global batch of {batch}; "
            "lower pretrain.global_batch_size or make more shards"
        )
    passes = num_ranks * run.accumulation
    if run.local_batch_size is not None and run.local_batch_size * passes != batch:
        raise InputError(_other_batch(settings, num_ranks))
    if batch % (passes * group):
        raise InputError(
            f"{num_ranks} processes{f' × {run.accumulation} passes' if run.accumulation > 1 else ''} cannot share a "
            f"global batch of {batch} in whole clustering groups of {group}; use a number of processes "
            f"{'× passes ' if run.accumulation > 1 else ''}that divides {batch // group}"
        )
    return BatchPlan(
        num_samples=num_samples,
        global_batch_size=batch,
        num_ranks=num_ranks,
        accumulation=run.accumulation,
        epochs=settings.epochs,
        warmup_epochs=settings.optim.warmup_epochs,
    )


def _other_batch(settings: PretrainSettings, num_ranks: int) -> str:
    """That the global batch does not come out, and the ways to make it."""
    batch, local, run = settings.global_batch_size, settings.run.local_batch_size, settings.run
    assert local is not None
    made = local * num_ranks * run.accumulation
    fitting = f"pretrain.run.accumulation={batch // (local * num_ranks)}" if batch % (local * num_ranks) == 0 else None
    ways = [
        *([fitting] if fitting else []),
        f"pretrain.global_batch_size={made}",
        "pretrain.run.on_other_batch=scale, which changes learning rate and target_ema with it by rule",
    ]
    return (
        f"{num_ranks} processes × {local} images × {run.accumulation} passes make a global batch of {made}, but the "
        f"recipe's is {batch}; set {', or '.join(ways)}"
    )


class SegmentationSettings(Settings):
    """FCN fine-tuning and scoring (A.2; where it is silent, MMSegmentation's defaults). Sizes in pixels.

    Attributes:
        short_side: images are first resized to it, in training and in evaluation; scores are always taken at the
            original size.
        scale_range: ratio to that size, drawn per training crop.
        loss_over: what the cross-entropy is averaged over; void pixels never add to its sum.
        lr_drops: shares of the run at which the rate drops tenfold.
        max_class_share: a crop where one class has a larger share of the labelled pixels is drawn again; 1 allows all.
        auxiliary_weight: weight of the loss of the head on C4; 0 leaves that head out.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"num_workers", "cache_mib", "log_every_iterations"})

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    inits: Annotated[tuple[Literal["run", "random"], ...], Field(min_length=1)] = ("run",)
    iterations: Positive = 30_000
    batch_size: Positive = 16
    lr: Rate = 0.01
    momentum: Rate = 0.9
    weight_decay: Rate = 1e-4
    lr_drops: tuple[Probability, ...] = (0.7, 0.9)
    short_side: Positive | None = None
    crop_size: Positive = 513
    scale_range: Range = (0.5, 2.0)
    flip_probability: Probability = 0.5
    max_class_share: Probability = 0.75
    photometric_distortion: bool = True
    head_channels: Positive = 256
    head_convs: Positive = 2
    head_dilation: Positive = 6
    concat_input: bool = True
    dropout: Probability = 0.1
    auxiliary_weight: Rate = 0.4
    auxiliary_channels: Positive = 256
    auxiliary_convs: Positive = 1
    auxiliary_dilation: Positive = 1
    loss_over: Literal["all_pixels", "labelled_pixels"] = "all_pixels"
    num_workers: Annotated[int, Field(ge=0)] = 4
    cache_mib: Annotated[int, Field(ge=0)] = Field(1024, description="decoded training images are kept up to this")
    report_classes: tuple[str, ...] = Field((), description="also the mean over these, where given")
    log_every_iterations: Positive = 50

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not 0 < self.scale_range[0] <= self.scale_range[1]:
            raise ValueError(f"scale_range {list(self.scale_range)} is not [low, high] with 0 < low <= high")
        for name, values in (("seeds", self.seeds), ("inits", self.inits)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} holds a value twice")
        return self


class EvalVocSettings(SegmentationSettings):
    """FCN fine-tuning on a VOC2012-layout folder: which lists and masks of it are used."""

    train_list: str = Field("train", description="ImageSets/Segmentation/<name>.txt; train_aug is usually trainaug")
    train_masks: str = Field("SegmentationClass", description="folder of the training masks")
    val_list: str = "val"
