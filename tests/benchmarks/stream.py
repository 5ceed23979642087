"""`make bench-stream`: one core against the usual pipeline and the bare calls; waiting; shuffling; memory.

python -m tests.benchmarks.stream [--images FOLDER] [--rounds 5] [--soak 100000]

Real photographs where there are some (--images, by default ../shared/data/imagenet1k_sample beside the checkout),
else generated ones of the same size. All that is compared takes turns in one process on one core; best of some
rounds. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
import simplejpeg
import torch
from torch.nn import functional as F

from pipeline.artifacts.manifest import Manifest
from preprocess.config import ShardSettings
from preprocess.sources.list_images import list_images
from tests.benchmarks.photographs import SAMPLE, generated_images
from tests.benchmarks.stream_reference import VIEWS, reference_batch
from tests.train.made_shards import write_shards
from train.config.pretrain import PretrainSettings
from train.data.augment import AugmentParams, augment_views, normalize
from train.data.device import ahead
from train.data.loader import HostBatch, host_batches, keep_memory
from train.data.order import SampleOrder
from train.data.shards.open import open_shards
from train.data.shards.reader import ShardReader
from train.data.views import random_crop_box

BATCH = 32
SIZE = 224
EPOCHS = 1000  # of the small set, more than anything here takes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of the stream, as ratios.")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=100_000, help="samples over which memory is watched; 0: none")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["R2O_CACHE"] = f"{scratch}/marks"
        root = args.images or (SAMPLE if SAMPLE.is_dir() else generated_images(Path(scratch) / "images"))
        paths = [root / os.fsdecode(source.name) for source in list_images(root)]
        write_shards(root, Path(scratch) / "shards", ShardSettings(images_per_shard=64))
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        print(
            f"{len(paths)} images ({root.name}), {size:.0f} kB each; torch {torch.__version__}; best of {args.rounds}"
        )
        one_core(paths, Path(scratch) / "shards", args.rounds)
        waiting(Path(scratch) / "shards")
        augmentation(args.rounds)
        shuffling()
        if args.soak:
            memory(Path(scratch) / "shards", args.soak)
    return 0


def settings_of(**data: object) -> PretrainSettings:
    return PretrainSettings.model_validate(
        {"epochs": EPOCHS, "global_batch_size": BATCH, "data": {"num_workers": 0, **data}}
    )


def reader_of(shards: Path, settings: PretrainSettings) -> ShardReader:
    return open_shards(str(shards), Manifest.read(shards), settings.data)


def stream(shards: Path, steps: int, **data: object) -> list[int]:
    """Host batches of so many steps in this process; normalised too where the host augments, as the reference is."""
    settings = settings_of(**data)
    ids = []
    for batch in host_batches(reader_of(shards, settings), settings, range(steps), rank=0, num_ranks=1):
        if settings.data.augment == "host":
            normalized(batch)
        ids += batch.sample_id.tolist()
    return ids


def normalized(batch: HostBatch) -> None:
    assert batch.images is not None
    assert batch.views is not None
    for image, views in zip(batch.images, batch.views, strict=True):
        normalize(image[None])
        normalize(views)


def one_core(paths: Sequence[Path], shards: Path, rounds: int) -> None:
    """The stream, the usual pipeline with and without SLIC, and the bare calls, in turns on one thread."""
    torch.set_num_threads(1)
    keep_memory()  # as a worker's process does, for all that is compared
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    data = [path.read_bytes() for path in paths]
    batches = [data[i : i + BATCH] for i in range(0, len(data), BATCH)]
    boxes = drawn_boxes(data)
    steps = len(data) // BATCH * 4
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "stream": (steps * BATCH, lambda: stream(shards, steps)),
        "host": (steps * BATCH, lambda: stream(shards, steps, augment="host")),
        "floor": (len(data), lambda: floor(data, boxes)),
        "plain": (len(data), lambda: [reference_batch(batch, superpixels=False) for batch in batches]),
        "slic": (len(data), lambda: [reference_batch(batch, superpixels=True) for batch in batches]),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, (_, way) in ways.items():
            best[name] = min(best[name], seconds_of(way))
    os.sched_setaffinity(0, affinity)
    rate = {name: count / best[name] for name, (count, _) in ways.items()}
    print(
        f"reference                       {rate['slic']:7.1f} samples/s   Pillow, torchvision on Pillow, skimage SLIC"
    )
    print(f"reference without SLIC          {rate['plain']:7.1f} samples/s")
    print(f"floor                           {rate['floor']:7.1f} samples/s   decode, three crop-resizes, bare")
    print(f"stream                          {rate['stream']:7.1f} samples/s   shards … batches, device augments")
    print(f"stream, augment: host           {rate['host']:7.1f} samples/s   … and the host augments and normalises")
    print(f"stream.vs_reference             {rate['stream'] / rate['slic']:7.2f}×")
    print(f"stream.vs_reference_without_slic{rate['stream'] / rate['plain']:7.2f}×")
    print(f"stream.host_vs_reference        {rate['host'] / rate['plain']:7.2f}×")
    print(f"stream.vs_floor                 {rate['stream'] / rate['floor']:7.3f}")


def drawn_boxes(data: Sequence[bytes]) -> list[list[tuple[int, int, int, int]]]:
    rng = np.random.default_rng(0)
    found = []
    for jpeg in data:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        views = [
            random_crop_box(rng, width=width, height=height, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) for _ in (0, 1)
        ]
        found.append([(0, 0, width, height), *map(tuple, views)])
    return found


def floor(data: Sequence[bytes], boxes: Sequence[Sequence[tuple[int, int, int, int]]]) -> None:
    """What no stream of whole images and two views can be without, by the fastest parts found."""
    for jpeg, three in zip(data, boxes, strict=True):
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(jpeg, "RGB", strict=True))
        for left, top, right, bottom in three:
            crop = pixels[top:bottom, left:right].contiguous().unsqueeze(0).permute(0, 3, 1, 2)
            F.interpolate(crop, (SIZE, SIZE), mode="bicubic", antialias=True)


def waiting(shards: Path) -> None:
    """The share of its time that a consumer waits which takes 0.8 of what the loader gives with all cores."""
    workers = len(os.sched_getaffinity(0))
    settings = settings_of(num_workers=workers)

    def loader(steps: int) -> Iterator[HostBatch]:
        return ahead(host_batches(reader_of(shards, settings), settings, range(steps), rank=0, num_ranks=1))

    batches = loader(160)
    for _ in range(40):
        next(batches)
    began = time.perf_counter()
    taken = sum(1 for _ in batches)
    rate = taken / (time.perf_counter() - began)
    batches, waited, began = loader(340), 0.0, 0.0
    for step in range(340):
        asked = time.perf_counter()
        next(batches)
        if step == 40:  # the workers have begun
            began, waited = time.perf_counter(), 0.0
        else:
            waited += time.perf_counter() - asked
        time.sleep(1 / (0.8 * rate))
    share = waited / (time.perf_counter() - began)
    print(f"loader, {workers} workers               {rate * BATCH:7.1f} samples/s")
    print(f"stream.data_wait                {share:7.2%}   of a consumer of {0.8 * rate * BATCH:.0f} samples/s")


def augmentation(rounds: int, count: int = 64) -> None:
    """Batched augmentation against torchvision's per image, both on one thread of a CPU; on a GPU 256 pairs."""
    torch.set_num_threads(1)
    settings = settings_of()
    from PIL import Image
    from torchvision.transforms import v2

    from train.data.augment import draw_params

    rng = np.random.default_rng(0)
    coarse = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in range(count)]
    images = [one.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for one in coarse]
    pixels = torch.from_numpy(np.stack([np.asarray(one) for one in images])).permute(0, 3, 1, 2)
    drawn = [draw_params(rng, settings.augment) for _ in range(count // 2)]
    params = AugmentParams(*(np.concatenate(values) for values in zip(*drawn, strict=True)))
    usual = [v2.Compose(view.transforms[1:]) for view in VIEWS]
    ours = min(seconds_of(lambda: augment_views(pixels, params, settings.augment)) for _ in range(rounds))
    theirs = min(
        seconds_of(lambda: [usual[number % 2](one) for number, one in enumerate(images)]) for _ in range(rounds)
    )
    print(
        f"stream.augment_vs_torchvision   {theirs / ours:7.2f}×   {ours / count * 1e3:.2f} ms a view on a CPU, "
        f"torchvision on Pillow {theirs / count * 1e3:.2f} ms"
    )
    if torch.cuda.is_available():
        on_cuda(pixels, params, settings, rounds)


def on_cuda(pixels: torch.Tensor, params: AugmentParams, settings: PretrainSettings, rounds: int) -> None:
    repeats = 512 // len(pixels)
    many = AugmentParams(*(np.concatenate([values] * repeats) for values in params))
    batch = pixels.repeat(repeats, 1, 1, 1).cuda()
    for dtype in (torch.float32, torch.bfloat16):

        def run(dtype: torch.dtype = dtype) -> None:
            augment_views(batch, many, settings.augment, dtype=dtype)
            torch.cuda.synchronize()

        best = min(seconds_of(run) for _ in range(rounds + 2))
        print(f"augmentation of 256 pairs       {best * 1e3:7.2f} ms   on {torch.cuda.get_device_name()}, {dtype}")


def shuffling() -> None:
    """How often two samples of a clustering group, or of a batch, meet again in the next epoch, by chance = 1."""
    print("lanes  groups   same group again  same batch again   (ImageNet's 1,252 shards, batch 4096; by chance 1)")
    for lanes, groups in ((1, 1), (16, 1), (32, 1), (64, 1), (256, 1), (512, 16)):
        order = SampleOrder(
            shard_sizes=(1024,) * 1251 + (143,), seed=0, lanes=lanes, global_batch_size=4096, lane_groups=groups
        )
        again = [met_again(order, window) for window in (32, 4096)]
        print(f"{lanes:5} {groups:7} {again[0]:18.1f} {again[1]:17.1f}")


def met_again(order: SampleOrder, window: int, pairs: int = 4_000_000) -> float:
    rng = np.random.default_rng(0)
    places = np.arange(order.places_per_epoch)
    first, then = order.sample_ids(0, places), np.full(order.num_samples, -1)
    then[order.sample_ids(1, places)] = places // window
    one = rng.integers(0, len(places), pairs)
    other = one // window * window + rng.integers(0, window, pairs)
    a, b = then[first[one]], then[first[other]]
    met = (a == b) & (a >= 0) & (one != other)
    return float(met.mean() / (window / order.num_samples))


def memory(shards: Path, samples: int) -> None:
    """Resident memory of each worker process while it makes so many samples, at small sizes of image and views."""
    workers = len(os.sched_getaffinity(0))
    settings = settings_of(num_workers=workers, image_size=64, view_size=64)
    steps = samples // BATCH
    epochs = -(-steps * BATCH // (Manifest.read(shards).stored // BATCH * BATCH))
    settings = settings.model_copy(update={"epochs": max(epochs, EPOCHS)})
    seen: dict[int, list[int]] = {}
    began = time.perf_counter()
    batches = host_batches(reader_of(shards, settings), settings, range(steps), rank=0, num_ranks=1)
    for step, _ in enumerate(batches):
        if step % max(1, steps // 20) == 0:
            for child in psutil.Process().children():
                seen.setdefault(child.pid, []).append(child.memory_full_info().uss)
    rate = samples / (time.perf_counter() - began)
    for history in (h for h in seen.values() if len(h) > 10):
        mib = [value / 2**20 for value in history]
        print(
            f"stream.worker_memory            {mib[1]:7.0f} MiB after a twentieth, {mib[len(mib) // 2]:.0f} half way, "
            f"{mib[-1]:.0f} at the end of {samples} samples ({rate:.0f}/s, {workers} workers)"
        )


def seconds_of(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
