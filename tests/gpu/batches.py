"""Batches on the device and on the CPU, decoded on either, and what nvJPEG makes of odd files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.artifacts.manifest import Manifest
from tests.gpu.device import CPU, CUDA, DEVICE, wait
from tests.gpu.places import DRY, shards
from tests.gpu.telling import check
from tests.gpu.trainer import host_batch, hosts_of, settings_of
from train.config.pretrain import PretrainSettings
from train.data.device import device_batches, on_device, to_device
from train.data.loader import whole_samples
from train.data.shards.open import open_shards

BATCH = 16 if DRY else 32


def checks() -> None:
    with check("batches on the device and on the CPU, host decodes") as c:
        c.update(host_decodes())
        c["ok"] = max(c["images"], c["crop_box"]) < 1e-3 and c["views_apart"] < 1e-4 and all(c["channels_last"])
    with check("batches on the device and on the CPU, device decodes (nvJPEG)") as c:
        c.update(device_decodes())
        c["ok"] = c["images_mean"] < 0.03
    if CUDA:
        with check("nvJPEG into memory that kernels still read (race between decoder's and side stream)") as c:
            differ = raced()
            c["mean_diff"], c["ok"] = [round(d, 5) for d in differ], max(differ) < 1e-6
        with check("nvJPEG: grey, progressive, 4:4:4, Adobe RGB, cut short") as c:
            c.update(odd_files())  # what is refused is decoded by the host; workers find what is cut short
    with check("a file that the device refuses, decoded by the host; the rest of its batch") as c:
        c.update(one_refused())
        c["ok"] = c["others_max"] == 0 and c["refused_mean"] < 0.03
    with check("batches through the thread and its stream, against one after the other") as c:
        c["max_diff"] = through_the_thread()
        c["ok"] = c["max_diff"] < 1e-3


def in_fp32(**sections: Any) -> PretrainSettings:
    return settings_of(BATCH, run={"precision": "fp32", "channels_last": True}, **sections)


def host_decodes() -> dict[str, object]:
    settings = in_fp32()
    host = host_batch(settings, pin=True)
    a, b = to_device(host, settings, CPU), to_device(host, settings, DEVICE)
    found: dict[str, object] = {
        name: float((getattr(a, name) - getattr(b, name).cpu()).abs().max()) for name in ("images", "views", "crop_box")
    }
    # A pixel within rounding of the solarize threshold may fall on either side, 0.02 apart.
    found["views_apart"] = float(((a.views - b.views.cpu()).abs() > 1e-3).float().mean())
    found["channels_last"] = [
        pixels.is_contiguous(memory_format=torch.channels_last) for pixels in (b.images, b.views.flatten(0, 1))
    ]
    return found


def device_decodes() -> dict[str, float]:
    settings = in_fp32(data={"decode": "device"})
    host = host_batch(settings, pin=True)
    a, b = to_device(host, settings, CPU), to_device(host, settings, DEVICE)
    found = {}
    for name in ("images", "views"):
        diff = (getattr(a, name) - getattr(b, name).cpu()).abs()
        found[f"{name}_mean"], found[f"{name}_max"] = float(diff.mean()), float(diff.max())
    return found


def raced() -> list[float]:
    """Differences of batches that are made while earlier kernels still wait, from those made one by one."""
    settings = settings_of(32, run={"precision": "fp32"}, data={"decode": "device"})
    hosts = list(hosts_of(settings, 3, pin=True))
    expected = []
    for host in hosts:
        expected.append(to_device(host, settings, DEVICE).views.clone())
        wait()
    stream, differ = torch.cuda.Stream(), []
    for _ in range(5):
        with torch.cuda.stream(stream):
            made = []
            for host in hosts:
                torch.cuda._sleep(int(2e8))  # 0.1 s: what is queued behind it still runs when the next is decoded
                made.append(to_device(host, settings, DEVICE).views)
        wait()
        differ += [float((m - e).abs().mean()) for m, e in zip(made, expected, strict=True)]
    return differ


def odd_files() -> dict[str, object]:
    """Mean differences of nvJPEG's pixels from libjpeg's, or what it says."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((300, 200), Image.Resampling.BICUBIC)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "plain": (image, {}),
        "grey": (image.convert("L"), {}),
        "progressive": (image, {"progressive": True}),
        "444": (image, {"subsampling": 0}),
        "rgb": (image, {"keep_rgb": True}),
        "cmyk": (image.convert("CMYK"), {}),
    }
    found: dict[str, object] = {}
    for name, (one, options) in kinds.items():
        raw = encoded(one, **options)
        try:
            there = decode_jpeg([raw], ImageReadMode.RGB, DEVICE)[0].cpu().float()
            here = decode_jpeg(raw, ImageReadMode.RGB).float()
            found[name] = round(float((there - here).abs().mean()), 2)
        except RuntimeError as error:
            found[name] = str(error)[:100]
    try:
        decode_jpeg([raw[: len(raw) // 2]], ImageReadMode.RGB, DEVICE)
        found["cut short"] = "no error"
    except RuntimeError as error:
        found["cut short"] = str(error)[:80]
    return found


def one_refused() -> dict[str, float]:
    """How far a batch's images are from those of whole files, where row 5 has lost its quantization tables."""
    settings = in_fp32(data={"decode": "device"})
    host = host_batch(settings, pin=True)
    assert host.jpegs is not None
    assert host.jpeg_ends is not None
    files = [bytes(file.tolist()) for file in host.jpegs.tensor_split(host.jpeg_ends[:-1])]
    files[5] = files[5].replace(b"\xff\xdb", b"\xff\xfe")  # a comment, of the same length
    damaged = host._replace(jpegs=torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8))
    reader = open_shards(str(shards()), Manifest.read(shards()), settings.data)
    expected = to_device(host, settings, DEVICE).images
    found = on_device(damaged, settings, DEVICE, whole_samples(reader, settings)).batch.images
    diff = (found - expected).abs().mean((1, 2, 3)).tolist()
    return {"refused_mean": diff.pop(5), "others_max": max(diff)}


def encoded(image: Image.Image, **options: Any) -> torch.Tensor:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90, **options)
    return torch.frombuffer(bytearray(data.getvalue()), dtype=torch.uint8)


def through_the_thread() -> float:
    """The largest difference of batches made ahead, on a stream of their own, from those made one by one."""
    settings = settings_of(BATCH)
    hosts = list(hosts_of(settings, 4, pin=True))
    serial = [to_device(h, settings, DEVICE).views.float().clone() for h in hosts]
    wait()
    worst = 0.0
    for local_batch, expected in zip(device_batches(iter(hosts), settings, DEVICE), serial, strict=True):
        worst = max(worst, float((local_batch.batch.views.float() - expected).abs().max()))
    return worst
