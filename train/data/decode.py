"""The JPEGs of a batch decoded on the device; one that cannot be is read again, as the host would."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.foundation.errors import InputError
from train.data.augment import AugmentParams
from train.data.loader import HostBatch, collate
from train.data.stream import Slot
from train.data.views import Sample, decode_pixels

ReadAgain = Callable[[Slot], Sample]
T = TypeVar("T", Tensor, Tensor | None)


def decode_on_device(
    host: HostBatch, device: torch.device, read_again: ReadAgain | None = None
) -> tuple[HostBatch, list[Tensor]]:
    """The pixels of every row, uint8 (3, H, W), by nvJPEG on CUDA, by libjpeg-turbo elsewhere; and whose they are.

    nvJPEG refuses some files that are whole. So what the device refuses is read again and decoded on the host. What is
    damaged there too is named, or replaced by the sample that a run would take whose host decodes.

    Args:
        read_again: a slot's sample with a JPEG that the host has decoded.
    Returns:
        the host batch, with the rows that had to be replaced, and its pixels.
    Raises:
        InputError: a JPEG is damaged and not to be skipped; or the device decodes none at all.
    """
    assert host.jpegs is not None
    assert host.jpeg_ends is not None
    files = list(host.jpegs.tensor_split(host.jpeg_ends[:-1]))
    # torchvision means to hand this over to TorchCodec some day, and says so at every call
    warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)
    try:
        return host, _decode(files, device)
    except RuntimeError as error:
        reason = str(error)
    alone = [_decode_alone(file, device) for file in files]
    refused = [row for row, pixels in enumerate(alone) if pixels is None]
    if read_again is None or host.slots is None:
        ids = host.sample_id[refused].tolist()
        raise InputError(f"samples {ids} cannot be decoded on {device}: {reason}")
    own = host.sample_id.tolist()
    for row in refused:
        sample = read_again(Slot(*host.slots[row].tolist()))
        assert sample.jpeg is not None
        pixels = decode_pixels(sample.jpeg, key=str(sample.sample_id))
        alone[row] = torch.from_numpy(pixels).permute(2, 0, 1).to(device)
        host = _with_row(host, row, sample)
    if len(refused) == len(files) > 1 and host.sample_id.tolist() == own:
        raise InputError(
            f"{device} decodes none of {len(files)} JPEGs that the host decodes ({reason}); "
            "set pretrain.data.decode: host"
        )
    return host, [pixels for pixels in alone if pixels is not None]


def _decode(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode all files, or raise RuntimeError.

    nvJPEG works on a stream of its own, into memory that PyTorch's allocator gives out for the current stream: memory
    that kernels queued there may still read (pytorch/vision#9606, meta-pytorch/torchcodec#1634). So those are waited
    for, by this thread alone. Afterwards there is nothing to wait for: torchvision waits for its stream before it
    returns, and makes the current stream wait for it too.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    try:
        decoded: list[Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except RuntimeError:
        # The files before the bad one may still be being written, into memory that is free again.
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        raise
    return decoded


def _decode_alone(file: Tensor, device: torch.device) -> Tensor | None:
    """One file's pixels; None where the device refuses it."""
    try:
        return _decode([file], device)[0]
    except RuntimeError:
        return None


def _with_row(host: HostBatch, row: int, sample: Sample) -> HostBatch:
    """The batch with another sample in one row, and what was skipped for it."""
    one = collate([sample])
    assert host.jpegs is not None
    assert host.jpeg_ends is not None
    assert host.slots is not None
    assert one.jpegs is not None

    def put(ours: T, theirs: T) -> T:
        if ours is None or theirs is None:
            return ours
        both = ours.to(torch.promote_types(ours.dtype, theirs.dtype), copy=True)
        both[row] = theirs[0]
        return both

    augment = AugmentParams(*(field.copy() for field in host.augment))
    for mine, other in zip(augment, one.augment, strict=True):
        mine[row] = other[0]
    files = list(host.jpegs.tensor_split(host.jpeg_ends[:-1]))
    files[row] = one.jpegs
    belong = host.slots[:, 2].tolist()
    skipped = [other for other in host.skipped if other.sample_id != belong[row]] + list(one.skipped)
    return host._replace(
        sample_id=put(host.sample_id, one.sample_id),
        superpixels=put(host.superpixels, one.superpixels),
        boxes=put(host.boxes, one.boxes),
        crop_box=put(host.crop_box, one.crop_box),
        flipped=put(host.flipped, one.flipped),
        augment=augment,
        view_superpixels=put(host.view_superpixels, one.view_superpixels),
        jpegs=torch.cat(files),
        jpeg_ends=torch.tensor([len(file) for file in files]).cumsum(0),
        skipped=tuple(sorted(skipped, key=lambda other: belong.index(other.sample_id))),
    )
