"""The photographs that benchmarks read: real ones beside the checkout, or generated ones of the same size."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "imagenet1k_sample"
GENERATED = 100


def generated_images(root: Path) -> Path:
    """JPEGs of 500 × 375 pixels, smooth with edges and some noise, of about the bytes of a photograph."""
    for number in range(GENERATED):
        folder = root / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(photograph(number, 500, 375))
    return root


def photograph(seed: int, width: int, height: int, *, turned: bool = False) -> bytes:
    """A JPEG, smooth with edges and some noise; `turned`: with an EXIF orientation."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(12):
        top, left = int(rng.integers(0, height * 4 // 5)), int(rng.integers(0, width * 4 // 5))
        tall, wide = int(rng.integers(height // 20, height // 3)), int(rng.integers(width // 25, width // 4))
        pixels[top : top + tall, left : left + wide] = rng.integers(0, 256, 3)
    noise = rng.integers(-16, 17, (min(height, 500), min(width, 500), 3), dtype=np.int16)
    repeats = -(-height // noise.shape[0]), -(-width // noise.shape[1]), 1
    noisy = (pixels + np.tile(noise, repeats)[:height, :width]).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90, **({"exif": exif} if turned else {}))
    return buffer.getvalue()
