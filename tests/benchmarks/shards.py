"""`make bench-shards`: what a core makes of images, against the usual path and against the bare calls.

python -m tests.benchmarks.shards [--images FOLDER] [--rounds 5] [--large 1000]

Real photographs where there are some (--images, by default ../shared/data/imagenet1k_sample beside the checkout), else
generated ones of the same size. Rates are images/s of one process on one core, the best of some rounds, which take
turns so that the machine's moods meet all alike. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import simplejpeg
from fast_slic.avx2 import SlicAvx2
from PIL import Image

from pipeline.artifacts.sample import encode_label_map
from pipeline.foundation.folders import folder_at
from preprocess import make_shards
from preprocess.config import FastSlicSettings, ShardSettings
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.superpixels import RESAMPLE
from preprocess.shards.worker import ENVIRONMENT, Child, make_shard_isolated
from preprocess.sources.list_images import list_images
from tests.benchmarks.photographs import SAMPLE, generated_images, photograph

FULL_SHARD = 1024
SIZE = (224, 224)
LARGE, DISTINCT = (6000, 4000), 8
SETTINGS = FastSlicSettings()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of the shard task, as ratios.")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=1000, help="photographs of 24 megapixels for the memory; 0: none")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.images or (SAMPLE if SAMPLE.is_dir() else generated_images(Path(scratch) / "images"))
        paths = [root / os.fsdecode(source.name) for source in list_images(root)]
        kind = root.name if root == (args.images or SAMPLE) else "made for this"
        print(
            f"{len(paths)} images ({kind}), {sum(path.stat().st_size for path in paths) / len(paths) / 1e3:.0f} kB each"
        )
        one_core(root, paths, Path(scratch), args.rounds)
        two_workers(paths, Path(scratch))
        if args.large:
            memory(args.large, Path(scratch))
    return 0


def one_core(root: Path, paths: Sequence[Path], scratch: Path, rounds: int) -> None:
    """The task, the usual path and the bare calls, in turns."""
    task = Plan(list_images(root), ShardSettings(images_per_shard=len(paths))).task(0)
    repeats = -(-FULL_SHARD // len(paths))
    task = replace(task, sources=task.sources * repeats)
    (scratch / "task").mkdir()
    data = [path.read_bytes() for path in paths]
    ways: dict[str, Callable[[], object]] = {
        "task": lambda: make_shard(task, folder=folder_at(scratch / "task")),
        "floor": lambda: floor(data),
        "reference": lambda: reference(paths, scratch / "reference.tar"),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = min(best[name], seconds_of(way))
    best["task"] /= repeats
    rate = {name: len(paths) / seconds for name, seconds in best.items()}
    print(
        f"reference           {rate['reference']:7.1f} images/s   Pillow, skimage.segmentation.slic(100), PNG, tarfile"
    )
    print(f"floor               {rate['floor']:7.1f} images/s   decode, resize, fast_slic, label encoding, bare")
    print(f"task                {rate['task']:7.1f} images/s   read … tar, in one process")
    print(f"shards.vs_reference {rate['task'] / rate['reference']:7.2f}×")
    print(f"shards.vs_floor     {rate['task'] / rate['floor']:7.3f}")
    parts(data)


def two_workers(paths: Sequence[Path], scratch: Path) -> None:
    """The whole job on a Ray that runs already, its processes warm, with one worker and with two."""
    import ray

    root = scratch / "many"
    root.mkdir()
    for number in range(4000):
        (root / f"{number:05d}.jpg").symlink_to(paths[number % len(paths)])
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    took = {}
    for number, workers in enumerate((2, 1, 2, 1, 2)):  # the first starts the processes
        command = ["--images", str(root), "--shards", str(scratch / f"job{number}")]
        settings = (f"workers={workers}", "images_per_shard=125", "max_bad_fraction=1")
        for setting in settings:
            command += ["--set", f"shards.{setting}"]
        began = time.perf_counter()
        assert make_shards.main(command) == 0
        if number:
            took[workers] = min(took.get(workers, float("inf")), time.perf_counter() - began)
    ray.shutdown()
    rates = {workers: 4000 / seconds for workers, seconds in took.items()}
    print(f"one worker          {rates[1]:7.1f} images/s   the whole job: list, plan, Ray, record, manifest")
    print(f"two workers         {rates[2]:7.1f} images/s")
    print(f"shards.two_workers  {rates[2] / rates[1]:7.2f}×")


def memory(count: int, scratch: Path) -> None:
    """The largest resident size that the process of a task reaches over large photographs, a quarter of them turned."""
    root = scratch / "large"
    root.mkdir()
    for number in range(DISTINCT):
        (scratch / f"large{number}.jpg").write_bytes(photograph(number, *LARGE, turned=number % 4 == 3))
    for number in range(count):
        (root / f"{number:04d}.jpg").symlink_to(scratch / f"large{number % DISTINCT}.jpg")
    child = Child()
    task = Plan(list_images(root), ShardSettings(images_per_shard=count)).task(0)
    (scratch / "shards").mkdir()
    result = make_shard_isolated(task, folder=str(scratch / "shards"), owned=False, child=child)
    process = next(p for p in psutil.Process().children() if "preprocess.shards.worker" in p.cmdline())
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    child.close()
    rate = count / result.seconds
    print(f"shards.task_memory  {peak:7.0f} MiB   peak over {count} photographs of 24 MP, {rate:.1f} images/s")


def seconds_of(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def parts(data: Sequence[bytes]) -> None:
    """What each step of the floor costs, in ms an image."""
    pixels = [decode(jpeg) for jpeg in data]
    squares = [square(p) for p in pixels]
    maps = [slic(s) for s in squares]
    steps: dict[str, tuple[Callable[[object], object], Sequence[object]]] = {
        "decode (simplejpeg)": (decode, data),
        f"resize (Pillow, {SETTINGS.resample})": (square, pixels),
        f"fast_slic ({SETTINGS.iterations} iterations)": (slic, squares),
        "label encoding": (encode_label_map, maps),
    }
    for name, (step, inputs) in steps.items():
        best = min(seconds_of(lambda step=step, inputs=inputs: [step(x) for x in inputs] and None) for _ in range(3))
        print(f"  {name:28} {best / len(inputs) * 1e3:6.3f} ms")


def floor(data: Sequence[bytes]) -> None:
    """What no task can be without."""
    for jpeg in data:
        encode_label_map(slic(square(decode(jpeg))))


def decode(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, "RGBX", min_height=SIZE[0], min_width=SIZE[1], strict=True)


def square(pixels: np.ndarray) -> np.ndarray:
    image = Image.frombuffer("RGBX", (pixels.shape[1], pixels.shape[0]), pixels, "raw", "RGBX", 0, 1)
    return np.asarray(image.resize(SIZE, RESAMPLE[SETTINGS.resample]).convert("RGB"))


def slic(image: np.ndarray) -> np.ndarray:
    model = SlicAvx2(SETTINGS.segments, None, SETTINGS.compactness, SETTINGS.min_size_factor, num_threads=1)
    return model.iterate(np.ascontiguousarray(image), max_iter=SETTINGS.iterations)


def reference(paths: Sequence[Path], tar_path: Path) -> None:
    """The usual path: what one writes in ten lines of Pillow, scikit-image and tarfile."""
    from skimage.segmentation import slic

    with tarfile.open(tar_path, "w") as tar:
        for number, path in enumerate(paths):
            jpeg = path.read_bytes()
            with Image.open(io.BytesIO(jpeg)) as image:
                resized = image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR)
            label_map = slic(np.asarray(resized), n_segments=100, start_label=0)
            png = io.BytesIO()
            Image.fromarray(label_map.astype(np.uint8)).save(png, format="PNG")
            for name, data in ((f"{number:09d}.jpg", jpeg), (f"{number:09d}.superpixels.png", png.getvalue())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    if not ENVIRONMENT.items() <= os.environ.items():  # what a worker's process has, for all that is compared
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.benchmarks.shards", *sys.argv[1:]], os.environ | ENVIRONMENT
        )
    sys.exit(main())
