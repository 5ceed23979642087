"""Settings of the evaluations, one class and one section of a config file each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from pipeline.foundation.settings import SECTIONS, Seed, load_settings
from train.config.evaluation import EvaluationSettings
from train.config.frozen import EvalFrozenSettings  # noqa: F401 - `all_sections` looks for it
from train.config.numbers import Positive, Probability, Range, Rate


class SegmentationSettings(EvaluationSettings):
    """FCN fine-tuning and scoring (A.2; where it is silent, MMSegmentation's defaults). Sizes in pixels.

    Attributes:
        inits: weights that it begins with: those of the run; random ones; random ones with the batch-norm statistics of
            the training images, which a backbone without batch norm leaves out.
        short_side: images are first resized to it, in training and in evaluation; scores are always taken at the
            original size.
        scale_range: ratio to that size, drawn per training crop.
        loss_over: what the cross-entropy is averaged over; void pixels never add to its sum.
        lr_drops: shares of the run at which the rate drops tenfold.
        max_class_share: a crop where one class has a larger share of the labelled pixels is drawn again; 1 allows all.
        auxiliary_weight: weight of the loss of the head on C4; 0 leaves that head out.
    """

    NOT_CONTENT: ClassVar[frozenset[str]] = frozenset({"num_workers", "cache_mib", "log_every_iterations"})

    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0,)
    inits: Annotated[tuple[Literal["run", "random", "random-bn"], ...], Field(min_length=1)] = ("run",)
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

    SECTION: ClassVar[str] = "eval_voc"

    train_list: str = Field("train", description="ImageSets/Segmentation/<name>.txt; train_aug is usually trainaug")
    train_masks: str = Field("SegmentationClass", description="folder of the training masks")
    val_list: str = "val"


E = TypeVar("E", bound=EvaluationSettings)


def load_evaluation_settings(model: type[E], path: Path | None = None, overrides: Sequence[str] = ()) -> E:
    """An evaluation's section of a config file.

    Args:
        path: the file; None: the defaults.
        overrides: `section.key=value` strings.
    Raises:
        InputError: a mistake in the section, or a section that there is not.
    """
    return load_settings(model, model.SECTION, path, overrides, all_sections())


def all_sections() -> tuple[str, ...]:
    """Every section that a config file may have, those of the evaluations that this file knows among them."""
    kinds = [one for one in globals().values() if isinstance(one, type) and issubclass(one, EvaluationSettings)]
    return (*SECTIONS[:-1], *(one.SECTION for one in kinds if "SECTION" in vars(one)), *SECTIONS[-1:])
