"""Settings of how a pretraining run is executed and watched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pipeline.foundation.settings import Settings
from train.config.numbers import Positive


class RunSettings(Settings):
    """How a run is executed and watched; of these only `precision` and `channels_last` are content.

    Attributes:
        local_batch_size: images of one process and forward pass; null: whatever makes the global batch come out.
        accumulation: forward passes per step and process. Batch norm, and negatives of the contrastive losses, then see
            one pass at a time, not the global batch.
        on_other_batch: when local_batch_size × processes × accumulation is not global_batch_size: `stop`, or `scale`
            to what they make: the learning rate linearly, target_ema to τ^(batch made / batch of the recipe).
        precision: of the networks' passes; weights, updates, K-means and loss are float32. `fp16` scales the loss and
            skips the updates that overflow. `tf32` rounds float32 products on CUDA devices that can. `auto` becomes
            `bf16` where GPUs or processor multiply it in hardware, else `fp32`; a run keeps what it began with.
        compile: torch.compile of the backbones, for steps alone; the first takes a minute or more.
        milestone_every_epochs: the checkpoints at the ends of such epochs are never removed.
        checkpoint_every_minutes: also so long after the last one.
        collective_timeout_minutes: a process that waits longer for the others takes them for dead, as it does
            whoever makes its batches.
        panel_image_size: at which panels find masks: larger than in training they are finer.
        probe_every_epochs: null: never. A probe (`train.run.probe`) costs one forward pass of its images, shared by the
            ranks, in fp32: a ninth of the arithmetic that training on as many takes.
        probe_images: of the shards, for nearest neighbours. Some ten a class tell something: 20,000 for ImageNet-1K.
        probe_masks: folder of VOC2012's layout whose `val` images have the masks that refined ones are compared with.
        probe_superpixels: shards of those images, a path or URL; null: equal rectangles stand for superpixels.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset(
        {
            "local_batch_size", "accumulation", "on_other_batch", "compile", "cudnn_benchmark", "log_every_steps",
            "checkpoint_every_epochs", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints",
            "milestone_every_epochs", "panels_every_epochs", "panels_every_steps", "panel_images", "panel_image_size",
            "collective_timeout_minutes", "wandb_project", "probe_every_epochs", "probe_images", "probe_masks",
            "probe_superpixels",
        }
    )  # fmt: skip

    local_batch_size: Positive | None = None
    accumulation: Positive = 1
    on_other_batch: Literal["stop", "scale"] = "stop"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    cudnn_benchmark: bool = Field(False, description="cuDNN tries its algorithms; runs then repeat to rounding alone")
    log_every_steps: Positive = 10
    checkpoint_every_epochs: Positive = 1
    checkpoint_every_steps: Positive | None = Field(None, description="also within epochs")
    checkpoint_every_minutes: Annotated[float, Field(gt=0)] | None = 15
    keep_checkpoints: Positive = Field(2, description="the newest; milestones are kept besides")
    milestone_every_epochs: Positive | None = 100
    panels_every_epochs: Positive = 10
    panels_every_steps: Positive | None = Field(None, description="also within epochs")
    panel_images: Positive = 8
    panel_image_size: Positive | None = Field(
        None, description="side in pixels at which masks are found for panels; null: data.image_size"
    )
    probe_every_epochs: Positive | None = 10
    probe_images: Positive = 1000
    probe_masks: Path | None = None
    probe_superpixels: str | None = None
    collective_timeout_minutes: Annotated[float, Field(gt=0)] = 10
    wandb_project: str | None = Field(None, description="also tell Weights & Biases (extra `wandb`)")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.on_other_batch == "scale" and self.local_batch_size is None:
            raise ValueError("on_other_batch: scale needs local_batch_size")
        if self.probe_superpixels is not None and self.probe_masks is None:
            raise ValueError("probe_superpixels needs probe_masks, whose images it is of")
        return self
