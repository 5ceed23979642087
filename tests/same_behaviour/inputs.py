"""What both checkouts are given: images in every form, and a small recipe of the whole pipeline."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

RECIPE = """\
scenes: {pretrain_images: 24, train_images: 4, val_images: 3, size: 64}
shards:
  images_per_shard: 4
  workers: 1
  superpixels: {size: 64, segments: 25}
  maps: {grid: {backend: grid, size: 64, rows: 3, columns: 3}}
pretrain:
  epochs: 3
  global_batch_size: 8
  data: {image_size: 64, view_size: 64, num_workers: 1}
  augment: {blur_kernel_size: 5}
  model: {backbone: resnet18, head_hidden_size: 64, projection_size: 16}
  refine: {clustering_group_size: 4}
  curriculum: {initial_num_clusters: 12, hold_epochs: 1}
  optim: {base_lr: 1.0, warmup_epochs: 0.5}
  run:
    log_every_steps: 1
    panels_every_epochs: 2
    panel_images: 2
    checkpoint_every_steps: 2
    probe_every_epochs: 3
    probe_images: 16
eval_frozen:
  baselines: []
  linear: {size: 64, max_iterations: 9}
  knn: {size: 64}
  context: {size: 64}
  overclustering: {size: 64, seeds: [0], clusters: 4, pca: 4}
  discovery: {size: 64}
  abo: {size: 64, seeds: [0]}
eval_voc:
  seeds: [0, 1]
  inits: [run, random]
  iterations: 2
  batch_size: 2
  crop_size: 32
  head_channels: 8
  auxiliary_channels: 8
  num_workers: 0
workflow: {preview_images: 6}
"""
WRONG = {  # config files with a mistake each
    "key": "pretrain: {optim: {base_rl: 0.1}}\n",
    "section": "pretrian: {epochs: 3}\n",
    "list": "- 1\n- 2\n",
    "syntax": "pretrain: {epochs: [\n",
    "base": "base: nowhere.yaml\n",
    "value": "shards: {images_per_shard: 0}\n",
    "backend": "shards: {superpixels: {backend: slik}}\n",
}
PHOTOS = 120
CLASSES = ("cat", "dog")


def write_inputs(folder: Path) -> None:
    """Fill a new folder; the same bytes every time."""
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(RECIPE)
    for name, text in WRONG.items():
        (folder / f"wrong-{name}.yaml").write_text(text)
    photos = {f"{CLASSES[n % 2]}/{n:03d}.jpg": encoded(n) for n in range(PHOTOS)}
    _write(folder / "photos", photos)
    _write(folder / "odd", _odd_images())
    _write_sources(folder, dict(list(photos.items())[:8]))
    (folder / "empty").mkdir()
    _write(folder / "notes", {"a.txt": b"no image", "b.txt": b"nor this"})


def encoded(seed: int, kind: str = "JPEG", *, mode: str = "RGB", **options: object) -> bytes:
    """A photograph of a kind: smooth noise with a bright rectangle, of a size of its own."""
    rng = np.random.default_rng(seed)
    width, height = (int(side) for side in rng.integers(48, 96, 2))
    noise = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)).copy()
    pixels[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def _odd_images() -> dict[str, bytes]:
    """Images that cannot keep their bytes, and some that are none."""
    turned = Image.Exif()
    turned[0x0112] = 6
    whole = encoded(0)
    return {
        "plain.jpg": whole,
        "grey.jpg": encoded(1, mode="L"),
        "cmyk.jpg": encoded(2, mode="CMYK"),
        "progressive.jpg": encoded(3, progressive=True),
        "turned.jpg": encoded(4, exif=turned),
        "alpha.png": encoded(5, "PNG", mode="RGBA"),
        "palette.png": encoded(6, "PNG", mode="P"),
        "some.webp": encoded(7, "WEBP"),
        "some.bmp": encoded(8, "BMP"),
        "named.png": encoded(9),
        "cut.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
        "text.jpg": b"no image",
        "notes.txt": b"not even by name",
    }


def _write_sources(folder: Path, images: dict[str, bytes]) -> None:
    """The same images as a list, a tar, WebDataset, Parquet and COCO."""
    (folder / "list.txt").write_text("".join(f"photos/{name}\n" for name in images))
    with tarfile.open(folder / "images.tar", "w") as tar:
        for name, data in images.items():
            _add(tar, name, data)
    with tarfile.open(folder / "samples.tar", "w") as tar:
        for number, (name, data) in enumerate(images.items()):
            _add(tar, f"{number:05d}.jpg", data)
            _add(tar, f"{number:05d}.cls", str(CLASSES.index(name.partition("/")[0])).encode())
    labels = [CLASSES.index(name.partition("/")[0]) for name in images]
    column = pa.array([{"bytes": data, "path": None} for data in images.values()])
    parquet.write_table(pa.table({"image": column, "label": labels}), folder / "train.parquet")
    _write(folder / "coco" / "train2017", {name.replace("/", "-"): data for name, data in images.items()})
    records = [{"id": number, "file_name": name.replace("/", "-")} for number, name in enumerate(images)]
    annotations = folder / "coco" / "annotations"
    annotations.mkdir()
    (annotations / "instances_train2017.json").write_text(json.dumps({"images": records}))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
