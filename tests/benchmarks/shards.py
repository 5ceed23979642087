"""`make bench-shards`: what a core makes of images, against the usual path and against the bare calls.

python -m tests.benchmarks.shards [--images FOLDER] [--rounds 3]

Real photographs where there are some (--images, by default ../shared/data/imagenet1k_sample beside the checkout), else
generated ones of the same size. All rates are images/s of one process on one core, the best of some rounds.
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
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet1k_sample"
GENERATED = 100
SIZE = (224, 224)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Images per second of the shard task, as ratios.")
    parser.add_argument("--images", type=Path, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        root = args.images or (SAMPLE if SAMPLE.is_dir() else generated_images(Path(scratch) / "images"))
        paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        tar = Path(scratch) / "reference.tar"
        rate = best_rate(lambda: reference(paths, tar), len(paths), args.rounds)
    print(f"{len(paths)} images of {'generated' if root != (args.images or SAMPLE) else root.name}")
    print(f"reference  {rate:7.1f} images/s   Pillow, skimage.segmentation.slic(100), PNG, tarfile")
    return 0


def best_rate(function: Callable[[], object], images: int, rounds: int) -> float:
    """Images per second of the fastest round."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return images / min(times)


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


def generated_images(root: Path) -> Path:
    """JPEGs of 500 × 375 pixels, smooth with edges and some noise, of about the bytes of a photograph."""
    for number in range(GENERATED):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.float64)
        for _ in range(12):
            top, left = rng.integers(0, 300), rng.integers(0, 400)
            pixels[top : top + rng.integers(20, 120), left : left + rng.integers(20, 120)] = rng.integers(0, 256, 3)
        noisy = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        folder = root / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90)
    return root


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
