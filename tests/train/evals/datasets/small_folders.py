"""Files of tiny data sets, written byte by byte where Pillow would not."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.foundation.pictures import voc_palette
from train.config.frozen import Annotation, FrozenDataSettings
from train.evals.datasets.annotated import DataSet
from train.evals.datasets.open import open_dataset

SIZE = (48, 64)  # height, width


def opened(path: Path, *needs: Annotation, **settings: Any) -> DataSet:
    return open_dataset(path, FrozenDataSettings(**settings), needs=frozenset(needs))


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_image(path: Path, seed: int, size: tuple[int, int] = SIZE, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(seed, size), kind))
    return path


def png_of(ids: np.ndarray, *, depth: int = 8, colour: int = 0, palette: bytes = b"") -> bytes:
    """A PNG whose stored samples are `ids`: grey (colour 0) or palette (3), of 1, 2, 4, 8 or 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b""
    for row in ids.tolist():
        bits = "".join(format(value, f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], depth, colour, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def voc_mask(number: int) -> np.ndarray:
    """Class number + 1 in a rectangle, class 20 in one pixel, and a row of void."""
    ids = np.zeros(SIZE, dtype=np.uint8)
    ids[8:30, 10:40] = 1 + number
    ids[30:32, 10:40] = 255
    ids[0, 0] = 20
    return ids


def palette_png(ids: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    image = Image.fromarray(ids)
    image.putpalette((voc_palette() if palette is None else palette).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_voc_like(root: Path, *, masks: str = "SegmentationClass", count: int = 4) -> Path:
    """Images a0, a1, … of which the first half is train and the rest val."""
    for folder in ("JPEGImages", masks, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"a{i}" for i in range(count)]
    for i, name in enumerate(names):
        write_image(root / "JPEGImages" / f"{name}.jpg", i)
        (root / masks / f"{name}.png").write_bytes(palette_png(voc_mask(i)))
    write_list(root, "train", names[: count // 2])
    write_list(root, "val", names[count // 2 :])
    return root


def write_list(root: Path, name: str, lines: Sequence[str], *, end: str = "\n", start: str = "") -> None:
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    path.write_bytes((start + end.join(lines) + end).encode())


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
