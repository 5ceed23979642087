"""Host batches to what the networks take: moved, decoded where the device does that, augmented; ahead of need."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from queue import Empty, Full, Queue
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data.augment import AugmentParams, augment_views, normalize
from train.data.decode import ReadAgain, decode_on_device
from train.data.loader import HostBatch
from train.data.views import Geometry, PixelBox, resize_and_crop, resize_and_crop_together
from train.r2o.model import Batch

POLL = 0.2  # seconds
END_SECONDS = 10.0  # that a thread may take to end
T = TypeVar("T")


class LocalBatch(NamedTuple):
    """A batch on the device, and the host batch that it came from; `ready`: when it is there, in a GPU's time."""

    host: HostBatch
    batch: Batch
    ready: torch.cuda.Event | None = None


def on_device(
    host: HostBatch, settings: PretrainSettings, device: torch.device, read_again: ReadAgain | None = None
) -> LocalBatch:
    """Move a host batch, decode it where that is the device's, augment its views, normalise.

    Args:
        read_again: see `decode_on_device`, which may replace rows of the host batch.
    """
    if host.jpegs is None:
        return LocalBatch(host, to_device(host, settings, device))
    host, decoded = decode_on_device(host, device, read_again)
    return LocalBatch(host, to_device(host, settings, device, decoded))


def to_device(
    host: HostBatch, settings: PretrainSettings, device: torch.device, decoded: Sequence[Tensor] = ()
) -> Batch:
    """A host batch on the device, augmented and normalised.

    Args:
        decoded: the pixels of every row, where the host has not decoded them; read from the JPEGs where not given.
    """
    if host.jpegs is not None:
        images, views = _images_and_views(host, settings, decoded or decode_on_device(host, device)[1])
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
        view_superpixels=None
        if host.view_superpixels is None
        else host.view_superpixels.to(device, non_blocking=True).int(),
    )


def _images_and_views(host: HostBatch, settings: PretrainSettings, decoded: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Images (b, 3, H, W) and views (b, 2, 3, h, w), uint8, of the decoded pixels (3, H, W)."""
    boxes = [(PixelBox(*first), PixelBox(*second)) for first, second in host.boxes.tolist()]
    sizes = {"image_size": settings.data.image_size, "view_size": settings.data.view_size}
    if decoded[0].device.type != "cpu":
        return resize_and_crop_together(decoded, boxes, host.flipped, **sizes)
    made = [
        resize_and_crop(pixels, Geometry(pair, crop_box, flipped, host.augment), **sizes)
        for pixels, pair, crop_box, flipped in zip(
            decoded, boxes, host.crop_box.numpy(), host.flipped.numpy(), strict=True
        )
    ]
    return torch.stack([image for image, _ in made]), torch.stack([torch.stack(views) for _, views in made])


def device_batches(
    batches: Iterator[HostBatch], settings: PretrainSettings, device: torch.device, read_again: ReadAgain | None = None
) -> Iterator[LocalBatch]:
    """Batches on the device, each made while the one before is computed with.

    A thread takes host batches from the workers. With CUDA it moves, decodes and augments them too, on a stream of its
    own; a CPU has no second place to compute in, and does that when a batch is asked for.

    Args:
        read_again: see `decode_on_device`.
    Raises:
        InputError: none came for as long as ranks wait for each other; or a JPEG is damaged.
    """
    minutes = settings.run.collective_timeout_minutes
    hangs = (
        f"no batch came within pretrain.run.collective_timeout_minutes {minutes:g}: as a rule the storage of the "
        "shards or of the cache hangs; put that right, or raise the minutes, and run the same command again"
    )
    if device.type != "cuda":
        for host in ahead(batches, seconds=60 * minutes, otherwise=hangs):
            yield on_device(host, settings, device, read_again)
        return
    made = _on_stream(batches, settings, device, torch.cuda.Stream(device), read_again)
    for local_batch in ahead(made, seconds=60 * minutes, otherwise=hangs):
        _hand_over(local_batch, device)
        yield local_batch


def _on_stream(
    batches: Iterator[HostBatch],
    settings: PretrainSettings,
    device: torch.device,
    stream: torch.cuda.Stream,
    read_again: ReadAgain | None,
) -> Iterator[LocalBatch]:
    # A new thread has GPU 0 current, whatever the others have, and a context there costs it half a gigabyte. torch's
    # loader begins with the first `next`, which is below, and gives its thread that pins the GPU that is current then.
    torch.cuda.set_device(stream.device)
    for host in batches:
        with torch.cuda.stream(stream):
            local_batch = on_device(host, settings, device, read_again)
            ready = torch.cuda.Event(enable_timing=True)
            ready.record(stream)
        yield local_batch._replace(ready=ready)


def _hand_over(local_batch: LocalBatch, device: torch.device) -> None:
    """Let the stream that computes wait for the one that copied, and the allocator know that both use the memory."""
    current = torch.cuda.current_stream(device)
    if local_batch.ready is not None:
        current.wait_event(local_batch.ready)
    for tensor in local_batch.batch:
        if tensor is not None:
            tensor.record_stream(current)


def end_of_queue(device: torch.device) -> torch.cuda.Event | None:
    """When a GPU has done all that was queued on its current stream until now, in its time; None on a CPU."""
    if device.type != "cuda":
        return None
    end = torch.cuda.Event(enable_timing=True)
    end.record(torch.cuda.current_stream(device))
    return end


def ahead(items: Iterator[T], size: int = 1, *, seconds: float | None = None, otherwise: str = "") -> Iterator[T]:
    """The same items, `size` of them taken ahead by a thread that ends with the loop over them; errors come through.

    Args:
        seconds: that one item may take; None: any time.
    Raises:
        InputError: with the message `otherwise`, it took longer.
    """
    taken: Queue[tuple[str, Any]] = Queue(size)
    stop = threading.Event()

    def put(kind: str, item: Any) -> bool:
        while not stop.is_set():
            with suppress(Full):
                taken.put((kind, item), timeout=POLL)
                return True
        return False

    def take() -> None:
        try:
            if all(put("item", item) for item in items):
                put("end", None)
        except BaseException as error:  # it is the consumer's to raise
            put("error", error)

    thread = threading.Thread(target=take, name="batches ahead", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, item = taken.get(timeout=seconds)
            except Empty:
                raise InputError(otherwise) from None
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        stop.set()
        thread.join(END_SECONDS)
        if thread.is_alive():
            for process in multiprocessing.active_children():
                process.kill()  # one that hangs heeds nothing else, and the end of this process would wait for it
            thread.join(END_SECONDS)
