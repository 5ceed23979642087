"""Host batches to what the networks take: moved, decoded where the device does that, augmented; ahead of need."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from queue import Full, Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.artifacts.errors import InputError
from train.config import PretrainSettings
from train.data.augment import AugmentParams, augment_views, normalize
from train.data.loader import HostBatch
from train.data.views import Geometry, PixelBox, resize_and_crop
from train.r2o.model import Batch

POLL = 0.2  # seconds


class Arrived(NamedTuple):
    """A batch on the device, and the host batch that it came from."""

    host: HostBatch
    batch: Batch


def to_device(host: HostBatch, settings: PretrainSettings, device: torch.device) -> Batch:
    """Move a host batch, decode it where that is the device's, augment its views, normalise."""
    if host.jpegs is not None:
        images, views = decode_on_device(host, settings, device)
    else:
        assert host.images is not None
        assert host.views is not None
        images, views = host.images.to(device, non_blocking=True), host.views.to(device, non_blocking=True)
    batch, num_views = views.shape[:2]
    flat = views.flatten(0, 1)
    dtype = torch.bfloat16 if settings.run.precision == "bf16" else torch.float32  # what the first layer takes anyway
    if settings.data.augment == "host":
        augmented = normalize(flat, dtype)
    else:
        params = AugmentParams(*(np.reshape(field, (batch * num_views, *field.shape[2:])) for field in host.augment))
        augmented = augment_views(flat, params, settings.augment, dtype=dtype)
    layout = torch.channels_last if settings.run.channels_last else torch.contiguous_format
    return Batch(
        images=normalize(images, dtype).contiguous(memory_format=layout),
        superpixels=host.superpixels.to(device, non_blocking=True).int(),
        views=augmented.contiguous(memory_format=layout).unflatten(0, (batch, num_views)),
        crop_box=host.crop_box.to(device, non_blocking=True),
        flipped=host.flipped.to(device, non_blocking=True),
    )


def decode_on_device(host: HostBatch, settings: PretrainSettings, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images (b, 3, H, W) and views (b, 2, 3, h, w), uint8: nvJPEG on CUDA, libjpeg-turbo elsewhere, then crops.

    Raises:
        InputError: a JPEG cannot be decoded.
    """
    assert host.jpegs is not None
    assert host.jpeg_ends is not None
    files = list(host.jpegs.tensor_split(host.jpeg_ends[:-1]))
    # torchvision means to hand this over to TorchCodec some day, and says so at every call
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
    try:
        decoded = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except RuntimeError as error:
        ids = host.sample_id.tolist()
        raise InputError(f"one of samples {ids} cannot be decoded on {device}: {error}") from None
    made = [
        resize_and_crop(
            pixels,
            Geometry((PixelBox(*boxes[0]), PixelBox(*boxes[1])), crop_box, flipped, host.augment),
            image_size=settings.data.image_size,
            view_size=settings.data.view_size,
        )
        for pixels, boxes, crop_box, flipped in zip(
            decoded, host.boxes.tolist(), host.crop_box.numpy(), host.flipped.numpy(), strict=True
        )
    ]
    return torch.stack([image for image, _ in made]), torch.stack([views for _, views in made])


def device_batches(
    batches: Iterator[HostBatch], settings: PretrainSettings, device: torch.device, *, ahead: int | None = None
) -> Iterator[Arrived]:
    """Batches on the device, `ahead` of them made by a thread on a stream of its own while the device computes.

    Args:
        ahead: 1 on CUDA where not given, else 0: without a thread, when they are asked for.
    """
    ahead = (1 if device.type == "cuda" else 0) if ahead is None else ahead
    if ahead == 0:
        for host in batches:
            yield Arrived(host, to_device(host, settings, device))
        return
    yield from _Ahead(batches, settings, device, ahead)


class _Ahead:
    """A thread that makes batches, and an iterator over what it has made; leaving the loop ends the thread."""

    def __init__(
        self, batches: Iterator[HostBatch], settings: PretrainSettings, device: torch.device, size: int
    ) -> None:
        self._batches, self._settings, self._device = batches, settings, device
        self._made: Queue[Any] = Queue(size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="device batches", daemon=True)

    def __iter__(self) -> Iterator[Arrived]:
        self._thread.start()
        try:
            while True:
                made, done = self._made.get()
                if made is None:
                    return
                if isinstance(made, BaseException):
                    raise made
                if done is not None:
                    _hand_over(made.batch, done)
                yield made
        finally:
            self._stop.set()
            self._thread.join()

    def _work(self) -> None:
        try:
            cuda = self._device.type == "cuda"
            stream = torch.cuda.Stream(self._device) if cuda else None
            on_stream: AbstractContextManager[Any] = torch.cuda.stream(stream) if stream else nullcontext()
            with on_stream:
                for host in self._batches:
                    batch = to_device(host, self._settings, self._device)
                    done = stream.record_event() if stream else None
                    if not self._put((Arrived(host, batch), done)):
                        return
            self._put((None, None))
        except BaseException as error:  # it is the trainer's to raise
            self._put((error, None))

    def _put(self, item: Any) -> bool:
        while not self._stop.is_set():
            try:
                self._made.put(item, timeout=POLL)
                return True
            except Full:
                continue
        return False


def _hand_over(batch: Batch, done: torch.cuda.Event) -> None:
    """Let the stream that computes wait for the one that copied, and the allocator know that both use the memory."""
    current = torch.cuda.current_stream()
    current.wait_event(done)
    for tensor in batch:
        tensor.record_stream(current)
