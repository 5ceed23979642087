"""Fine-tune a segmentation network and score it: what VOC and Cityscapes share. A data set is passed in.

Which sample comes when, and how it is augmented, is a pure function of (seed, iteration, slot): on a CPU two runs are
equal bit for bit, whatever the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import Progress
from train.config.batches import decoding_workers
from train.config.evals import SegmentationSettings
from train.evals.segmentation.augment import (
    LabelledImage,
    TrainingExample,
    distort_colours,
    normalised,
    random_crop,
    scaled_size,
    to_example,
)
from train.evals.segmentation.fcn import FCN, segmentation_loss
from train.evals.segmentation.metrics import confusion_matrix
from train.out_of_memory import Lack

_ORDER, _AUGMENT = 0, 1  # what a generator is for; part of its key


class SegmentationData(Protocol):
    """A finite set of labelled images; reading one twice gives the same."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> LabelledImage: ...


class Normalisation(NamedTuple):
    """Mean and standard deviation of RGB in [0, 1]."""

    mean: Sequence[float]
    std: Sequence[float]


class LossPoint(NamedTuple):
    """Mean loss over the iterations since the last point, up to and with `iteration` (1-based)."""

    iteration: int
    loss: float
    lr: float


class Scored(NamedTuple):
    """Summed confusion matrix (truth × prediction), and the predictions that were asked for, at original size."""

    confusion: Int64[np.ndarray, "classes classes"]
    predictions: dict[int, UInt8[np.ndarray, "h w"]]


def learning_rate(iteration: int, *, settings: SegmentationSettings) -> float:
    """Rate of a 0-based iteration: `lr`, a tenth of it after each of `lr_drops` (A.2: at 7/10 and 9/10)."""
    drops = sum(iteration >= round(share * settings.iterations) for share in settings.lr_drops)
    return settings.lr * 0.1**drops


def sample_at(position: int, *, num_samples: int, seed: int) -> int:
    """Index of the sample at a position of the endless order: epoch after epoch, each its own permutation."""
    epoch, offset = divmod(position, num_samples)
    return int(np.random.default_rng((seed, _ORDER, epoch)).permutation(num_samples)[offset])


@dataclass(frozen=True, kw_only=True)
class TrainingExamples(Dataset[TrainingExample]):
    """Every example of a run in the order of use: position = iteration × batch_size + slot."""

    data: SegmentationData
    settings: SegmentationSettings
    normalisation: Normalisation
    seed: int

    def __len__(self) -> int:
        return self.settings.iterations * self.settings.batch_size

    def __getitem__(self, position: int) -> TrainingExample:
        rng = np.random.default_rng((self.seed, _AUGMENT, *divmod(position, self.settings.batch_size)))
        sample = self.data[sample_at(position, num_samples=len(self.data), seed=self.seed)]
        image, labels = random_crop(sample, settings=self.settings, rng=rng)
        if self.settings.photometric_distortion:
            image = distort_colours(image, rng)
        crop, (mean, std) = LabelledImage(image, labels), self.normalisation
        return to_example(crop, mean=mean, std=std, size=self.settings.crop_size)


def fine_tune(model: FCN, examples: TrainingExamples, *, device: torch.device, label: str = "train") -> list[LossPoint]:
    """Train `model` in place by SGD on all examples; returns the loss curve.

    Raises:
        InputError: the loss was not finite, which is seen where it is logged; the weights are of no use then.
    """
    settings = examples.settings
    model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    progress = Progress(label, settings.iterations, "iterations")
    curve: list[LossPoint] = []
    losses: list[Tensor] = []  # on the device: reading one would wait for it, and leave the device without work
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(examples.seed)  # of dropout
        for iteration, (images, labels) in enumerate(_batches(examples, device), start=1):
            lr = learning_rate(iteration - 1, settings=settings)
            loss = segmentation_loss(model(images), labels, settings=settings)
            losses.append(loss.detach())
            _step(optimizer, loss, lr=lr)
            if iteration % settings.log_every_iterations == 0 or iteration == settings.iterations:
                values = _finite(losses, iteration, label)
                curve.append(LossPoint(iteration, sum(values) / len(values), lr))
                losses.clear()
            progress.advance(1, (f"loss {curve[-1].loss:.3f}  " if curve else "") + f"lr {lr:.1e}")
    return curve


def evaluate(
    model: FCN,
    data: SegmentationData,
    *,
    settings: SegmentationSettings,
    normalisation: Normalisation,
    num_classes: int,
    device: torch.device,
    keep: Sequence[int] = (),
    label: str = "evaluate",
) -> Scored:
    """Score every image whole, at its original size; BN uses its running statistics.

    With `short_side` the network sees the resized image, and its scores are resized to the original before the
    best class is taken.

    Args:
        keep: indices of the images whose predictions are returned.
    """
    model.to(device).to(memory_format=torch.channels_last).eval()
    images = _WholeImages(data, settings, normalisation)
    loader = DataLoader(images, batch_size=None, num_workers=decoding_workers(min(settings.num_workers, len(images))))
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    predictions: dict[int, np.ndarray] = {}
    progress = Progress(label, len(images), "images")
    for index, (image, labels) in enumerate(loader):
        prediction = predict(model, image.to(device), size=(labels.shape[0], labels.shape[1]))
        confusion += confusion_matrix(prediction, labels.to(device), num_classes=num_classes)
        if index in keep:
            predictions[index] = prediction.to(torch.uint8).cpu().numpy()
        progress.advance(1)
    return Scored(confusion.cpu().numpy(), predictions)


@torch.inference_mode()
def predict(model: nn.Module, image: Float32[Tensor, "3 h w"], *, size: tuple[int, int]) -> Int64[Tensor, "oh ow"]:
    """Best class per pixel of one normalised image, at `size` = (height, width)."""
    logits = model(image[None].contiguous(memory_format=torch.channels_last)).main
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    best: Tensor = logits[0].contiguous().max(dim=0).indices  # on a CPU five times as fast as argmax
    return best


def smaller_fine_tuning(settings: SegmentationSettings, lack: Lack) -> str:
    """The settings that help where memory is lacking, those that help most first."""
    section = settings.SECTION
    smaller = (
        f"lower {section}.batch_size, now {settings.batch_size}, or crop_size, now {settings.crop_size}; whole images "
        f"need less with a smaller short_side, now {settings.short_side or 'their own'}"
    )
    readers = f"lower {section}.num_workers, now {settings.num_workers}, or cache_mib, now {settings.cache_mib}"
    if lack.memory == "GPU":
        return smaller
    return f"{readers}; or {smaller}" if lack.of_worker else f"{smaller}; or {readers}"


class _WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """Per sample the network's input, float32 (3, h, w), and the labels at original size, uint8 (H, W)."""

    def __init__(self, data: SegmentationData, settings: SegmentationSettings, normalisation: Normalisation) -> None:
        self.data, self.short_side, self.normalisation = data, settings.short_side, normalisation

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self.data[index]
        height, width = scaled_size(*labels.shape, short_side=self.short_side)
        if (height, width) != labels.shape:
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        mean, std = self.normalisation
        return normalised(image, mean=mean, std=std), torch.from_numpy(labels.copy())


def _batches(examples: TrainingExamples, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    settings = examples.settings
    loader = DataLoader(
        examples,
        batch_size=settings.batch_size,
        num_workers=decoding_workers(min(settings.num_workers, settings.iterations)),
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        images = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        yield images, labels.to(device, non_blocking=True)


def _finite(losses: Sequence[Tensor], iteration: int, label: str) -> list[float]:
    """The losses of the last iterations, up to and with `iteration`, read at once."""
    values: list[float] = torch.stack(list(losses)).tolist()
    for place, value in enumerate(values, start=iteration - len(values) + 1):
        if not math.isfinite(value):
            raise InputError(f"{label}: the loss is {value} at iteration {place}; lower eval_voc.lr")
    return values


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, *, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
