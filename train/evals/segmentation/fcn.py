"""The segmentation network of A.2: a ResNet with dilated C5, an FCN head on it and an auxiliary one on C4.

Every default that the paper leaves to MMSegmentation is a setting (`train.config.evals.SegmentationSettings`).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.foundation.pictures import VOID
from train.config.evals import SegmentationSettings
from train.models.backbone import Backbone

STRIDE = 16  # of C4, and of the dilated C5


class SegmentationLogits(NamedTuple):
    """Class scores per pixel of the input; `auxiliary` while training, where that head exists."""

    main: Float[Tensor, "b classes h w"]
    auxiliary: Float[Tensor, "b classes h w"] | None


class FCNHead(nn.Module):
    """3×3 convolutions (BN, ReLU), optionally one over their output beside their input, then 1×1 per-pixel scores.

    Args:
        dilation: of the `num_convs` convolutions; the one after the concatenation has none, as in MMSegmentation.
        dropout: share of channels that are dropped before the 1×1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int,
        num_convs: int,
        dilation: int,
        concat_input: bool,
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        widths = itertools.pairwise([in_channels, *[channels] * num_convs])
        self.convs = nn.Sequential(*(conv_bn_relu(wide, out, dilation=dilation) for wide, out in widths))
        self.concat_conv = conv_bn_relu(in_channels + channels, channels, dilation=1) if concat_input else None
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        assert self.classifier.bias is not None
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes h w"]:
        """Scores at the resolution of the features."""
        x = self.convs(features)
        if self.concat_conv is not None:
            x = self.concat_conv(torch.cat((features, x), dim=1))
        scores: Tensor = self.classifier(self.dropout(x))
        return scores


def conv_bn_relu(in_channels: int, out_channels: int, *, dilation: int) -> nn.Sequential:
    """A 3×3 convolution that keeps height and width, He-initialised (normal, fan out)."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class FCN(nn.Module):
    """Backbone and heads. Weights of the heads depend on `seed` alone; the global generator is left as it was.

    Images of any size are padded on the right and below to whole cells of 16 pixels (with 0, the mean colour), and
    scores are upsampled by exactly 16 and cut back, so that cells and pixels are aligned alike at every size.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int, settings: SegmentationSettings, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = FCNHead(
                backbone.c5_channels,
                channels=settings.head_channels,
                num_convs=settings.head_convs,
                dilation=settings.head_dilation,
                concat_input=settings.concat_input,
                dropout=settings.dropout,
                num_classes=num_classes,
            )
            self.auxiliary_head = _auxiliary_head(backbone, num_classes, settings)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> SegmentationLogits:
        """Scores of normalised images at their own size."""
        height, width = images.shape[-2:]
        c4, c5 = self.backbone(F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE)))
        assert c5.shape[-2:] == c4.shape[-2:], "FCN needs a backbone with dilate_c5"
        main = _upsample(self.head(c5), height, width)
        if self.auxiliary_head is None or not self.training:
            return SegmentationLogits(main, None)
        return SegmentationLogits(main, _upsample(self.auxiliary_head(c4), height, width))


def segmentation_loss(
    logits: SegmentationLogits, labels: Int64[Tensor, "b h w"], *, settings: SegmentationSettings
) -> Float[Tensor, ""]:
    """Cross-entropy of the main scores plus `auxiliary_weight` × that of the auxiliary ones.

    Void pixels add nothing to the sum; whether they count in its divisor is `loss_over` (MMSegmentation: they do).
    """
    over_all = settings.loss_over == "all_pixels"
    count = labels.numel() if over_all else max(1, int((labels != VOID).sum()))
    loss = F.cross_entropy(logits.main, labels, ignore_index=VOID, reduction="sum") / count
    if logits.auxiliary is None:
        return loss
    auxiliary = F.cross_entropy(logits.auxiliary, labels, ignore_index=VOID, reduction="sum") / count
    return loss + settings.auxiliary_weight * auxiliary


def _auxiliary_head(backbone: Backbone, num_classes: int, settings: SegmentationSettings) -> FCNHead | None:
    if settings.auxiliary_weight == 0:
        return None
    return FCNHead(
        backbone.c4_channels,
        channels=settings.auxiliary_channels,
        num_convs=settings.auxiliary_convs,
        dilation=settings.auxiliary_dilation,
        concat_input=False,
        dropout=settings.dropout,
        num_classes=num_classes,
    )


def _upsample(logits: Tensor, height: int, width: int) -> Tensor:
    full = F.interpolate(logits, scale_factor=STRIDE, mode="bilinear", align_corners=False)
    return full[..., :height, :width]
