"""Settings of pretraining (section `pretrain`). Defaults are the paper's ImageNet-1K recipe (A.1)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import Seed, Settings
from train.config.data import AugmentSettings, DataSettings
from train.config.numbers import Positive, Probability, Rate
from train.config.run import RunSettings
from train.r2o.schedules import num_clusters_at

LR_BATCH_SIZE = 256  # base_lr is per this many images


class ModelSettings(Settings):
    """Backbone and heads (Section 4, Architecture; BYOL's 4096 → 256 heads).

    Attributes:
        head_output_bias: the heads' last layer has a bias (authors' release).
        concatenate_views: both views in one forward pass, so that their batch statistics mix (authors' release).
        init: random weights: `torchvision`'s, or those of BYOL and DetCon (`train.models.byol_init`), for ResNets.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"init"})

    backbone: Literal[
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "vit_s_16", "vit_b_16"
    ] = "resnet50"  # fmt: skip
    head_hidden_size: Positive = 4096
    projection_size: Positive = 256
    head_output_bias: bool = False
    concatenate_views: bool = False
    init: Literal["torchvision", "byol"] = "torchvision"

    @model_validator(mode="after")
    def _known_init(self) -> Self:
        if self.init == "byol" and self.backbone.startswith("vit"):
            raise ValueError(f"init: byol is that of ResNets; for {self.backbone} leave model.init at torchvision")
        return self


class RefineSettings(Settings):
    """Region refinement (Section 3.1).

    Attributes:
        clustering: `none`: the regions themselves are the masks (Table 5's rows without refinement).
        regions: the prior: superpixels; equal rectangles; the cells of C4; the whole image as one.
        grid: rows and columns of `regions: grid`; null: the squarest grid of at most K cells.
        kmeans_iterations: of Lloyd's.
        assign: `cell` gives each C4 cell to its nearest centre (Section 3.1), so that the regions bind K-means alone.
            `superpixel` gives each region to its own centre and paints it at 56 × 56, so that they bind the masks too
            (the authors' release; our reading of the ablations of the prior).
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
        hard_masks: each C5 cell of a view goes whole to the superpixel with the largest share of it (DetCon); only with
            `view_masks: superpixels`, as R2O's refined masks are soft.
        rows: which masks go through the heads: those `valid` in both views, or `all` (authors' release).
        min_pool_area: pooled features are divided by no less (cells); 1 in the authors' release.
        min_valid_area: a mask is in a view where it covers more than this there (cells of C5).
        mask_weight: each valid mask of the global batch counts once (`equal`); each image does (`image`), or masks
            count by their area, the mean of both views' (`area`).
        directions: the `sum` of the loss in both directions (Eq. 5), or their `mean` (authors' release).
        roi_aligned: RoIAlign's `aligned`; false in the authors' release, half a cell off.
        masks_per_view, temperature: of the contrastive losses. The paper states neither for A.4: 16 is DetCon's, 0.1
            DetCon's and SimCLR's.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"hard_masks", "min_valid_area", "mask_weight", "directions"})

    loss: Literal["byol", "nt_xent", "detcon_b"] = "byol"
    view_masks: Literal["refined", "superpixels"] = "refined"
    hard_masks: bool = False
    rows: Literal["valid", "all"] = "valid"
    min_pool_area: Rate = 0.0
    min_valid_area: Rate = 1e-3
    mask_weight: Literal["equal", "image", "area"] = "equal"
    directions: Literal["sum", "mean"] = "sum"
    roi_aligned: bool = True
    masks_per_view: Positive = 16
    temperature: Annotated[float, Field(gt=0)] = 0.1

    @model_validator(mode="after")
    def _weighs_what_it_has(self) -> Self:
        if self.mask_weight != "equal" and self.loss != "byol":
            raise ValueError(
                f"mask_weight: {self.mask_weight} needs loss: byol; {self.loss} samples masks_per_view masks of each "
                "image, so that images weigh the same"
            )
        return self

    @model_validator(mode="after")
    def _hard_masks_of_superpixels(self) -> Self:
        if self.hard_masks and self.view_masks != "superpixels":
            raise ValueError("hard_masks: true needs view_masks: superpixels; refined masks stay soft")
        return self


class CurriculumSettings(Settings):
    """Number of clusters K by epoch (Section 3.3, Eq. A1).

    Attributes:
        first_epoch: t of the run's first epoch. By 0 its last has t = T - 1, one step before the final K; by 1 it has
            t = T, and the first is one step past the initial K (authors' release).
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"first_epoch"})

    schedule: Literal["quarter_cosine", "linear", "piecewise", "constant"] = "quarter_cosine"
    initial_num_clusters: Positive = 128
    final_num_clusters: Positive = 4
    hold_epochs: Rate = 40
    first_epoch: Literal[0, 1] = 0


class OptimSettings(Settings):
    """LARS and its schedules (A.1, Optimization).

    Attributes:
        lars: `deepmind`'s form (BYOL's) or the authors' `release`'s, which also adapts and decays the gain of the
            stem's batch norm; see `train.engine.lars.LARS`.
        lr_scale_by_clusters: the learning rate is also multiplied by K over this (authors' release: 16).
        target_ema_batch_size: base_target_ema is for batches of this size; τ becomes τ^(global_batch_size / it).
        target_update: `before_targets` moves the target within the step, by the weights that the step begins with:
            after it has made the masks, and before it gives the targets of the loss (authors' release).
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
    target_update: Literal["after_step", "before_targets"] = "after_step"


class PretrainSettings(Settings):
    """One pretraining run."""

    seed: Seed = 0
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
            if self.run.panel_image_size not in (None, size):
                raise ValueError(f"{self.model.backbone} has one size, {size}; leave run.panel_image_size out")
        if self.optim.target_update == "before_targets" and self.run.accumulation > 1:
            raise ValueError(
                "optim.target_update: before_targets needs run.accumulation: 1; the second pass would make its masks "
                "by a target that has moved"
            )
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

    def superpixel_map(self, epoch: int) -> str:
        """Name of the map that is read in `epoch`; of the main one where no further ones are set."""
        maps = self.data.superpixel_maps
        wanted = math.log(self.num_clusters(epoch))
        return min(maps, key=lambda name: (abs(math.log(maps[name]) - wanted), maps[name]), default=MAIN_MAP)

    def num_clusters(self, epoch: float) -> int:
        """K in `epoch` (0-based)."""
        curriculum = self.curriculum
        return num_clusters_at(
            epoch + curriculum.first_epoch,
            schedule=curriculum.schedule,
            initial=curriculum.initial_num_clusters,
            final=curriculum.final_num_clusters,
            hold_epochs=curriculum.hold_epochs,
            total_epochs=self.epochs,
        )
