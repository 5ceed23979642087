"""How much the region prior decides about refined masks, beside how much the seed of K-means does, in both readings.

python -m tests.evidence.prior (--shards SHARDS | --images FOLDER) [--weights FILE] [--count 256] [--out FILE.json]

SLIC is changed for 10 × 10 boxes, and for SLIC with another seed. Normalised mutual information (scikit-learn's, by the
arithmetic mean) says how much of the masks stays: 1 all, 0 nothing. It is taken over all cells of a group of 32 images
whose K-means is one (`group`), and image by image (`image`); both are means. With `assign: cell` a prior that matters
no more than a seed gives the same figure for both; where regions are painted it gives a lower one.

Shards: their own superpixels. A folder: SLIC with 100 segments, made at 224 × 224 here. Without weights the backbone is
random. C4 comes from train-mode batch statistics of the group, as in training.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.results import encode_json
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from pipeline.foundation.progress import say
from pipeline.report.shown.blocks import Block, as_text
from preprocess.config import FastSlicSettings
from preprocess.shards.superpixels import label_maps_of
from tests.evidence.demo import machine_of_evidence
from train.config.data import DataSettings
from train.config.pretrain import RefineSettings
from train.data.resize import resized
from train.data.shards.open import open_shards
from train.data.views import decode_labels, decode_pixels
from train.engine.build import refinement_of
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone, build_backbone
from train.models.weights.init import load_init
from train.r2o.kmeans import seeding_uniforms
from train.r2o.refine import refine

READINGS = ("cell", "superpixel")
COMPARED = {"SLIC, another seed": ("slic", 1), "10 × 10, same seed": ("grid", 0)}  # beside SLIC with the first seed
SUFFIXES = {".jpg", ".jpeg", ".png"}


class Pictures(NamedTuple):
    """Images of one size, uint8 (n, 3, s, s), and their superpixels (n, h, w)."""

    pixels: Tensor
    superpixels: Tensor


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and store where asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.prior", description="Prior against seed.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shards")
    source.add_argument("--images", type=Path)
    parser.add_argument("--weights", type=Path, help="any file that --init takes; random ones without it")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--count", type=int, default=256, help="images; a multiple of --group")
    parser.add_argument("--group", type=int, default=32, help="images of one K-means")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--clusters", type=int, nargs="+", default=(64, 4))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    place = given.shards or given.images
    read = of_shards if given.shards else of_folder
    pictures = read(place, count=given.count // given.group * given.group, size=given.size)
    backbone = build_backbone(given.backbone, seed=0, image_size=given.size)
    if given.weights is not None:
        weights = load_init(given.weights, given.backbone, image_size=given.size).weights
        backbone.load_state_dict({**backbone.state_dict(), **weights})
    found = measured(backbone, pictures, group=given.group, clusters=given.clusters)
    title = f"Masks that stay: NMI with those of SLIC and the first seed, {len(pictures.pixels)} images of {place}"
    header = ["assign", "K", "changed for", "group", "image"]
    rows = [
        [one["assign"], str(one["clusters"]), one["changed"], f"{one['group']:.3f}", f"{one['image']:.3f}"]
        for one in found
    ]
    print(as_text([Block(title=title, header=header, rows=rows, leading=3)]), end="")
    if given.out is not None:
        about = {name: str(value) for name, value in vars(given).items()}
        write_atomic(given.out, encode_json({**machine_of_evidence(), "arguments": about, "nmi": found}))
    return 0


def measured(
    backbone: Backbone, pictures: Pictures, *, group: int, clusters: Sequence[int]
) -> list[dict[str, str | int | float]]:
    """One row a reading, K and change, with the mean NMI over groups and over images."""
    every: dict[tuple[str, int, str], list[list[float]]] = {}
    for number, c4 in enumerate(c4_of_groups(backbone, pictures.pixels, group)):
        superpixels = pictures.superpixels[number * group : (number + 1) * group]
        for assign in READINGS:
            for k in clusters:
                first = masks(c4, superpixels, prior="slic", assign=assign, num_clusters=k, seed=0, group=number)
                for changed, (prior, seed) in COMPARED.items():
                    other = masks(c4, superpixels, prior=prior, assign=assign, num_clusters=k, seed=seed, group=number)
                    of_images = [nmi(one, two) for one, two in zip(first, other, strict=True)]
                    every.setdefault((assign, k, changed), []).append([nmi(first, other), float(np.mean(of_images))])
        say(f"prior: group {number + 1} of {len(pictures.pixels) // group}")
    means = {key: np.mean(values, 0) for key, values in every.items()}
    return [
        {"assign": assign, "clusters": k, "changed": changed, "group": float(mean[0]), "image": float(mean[1])}
        for (assign, k, changed), mean in means.items()
    ]


def masks(
    c4: Tensor, superpixels: Tensor, *, prior: str, assign: str, num_clusters: int, seed: int, group: int
) -> np.ndarray:
    """The refined maps of one group."""
    regions: dict[str, Any] = {"regions": "superpixels"} if prior == "slic" else {"regions": "grid", "grid": (10, 10)}
    settings = RefineSettings(clustering_group_size=len(c4), assign=assign, **regions)  # type: ignore[arg-type]
    how = refinement_of(settings, max_superpixels=int(superpixels.max()) + 1)
    uniforms = seeding_uniforms(num_clusters, seed=seed, step=0, first_group=group, num_groups=1)
    return refine(c4, superpixels, how, uniforms=uniforms).numpy()


def nmi(one: np.ndarray, other: np.ndarray) -> float:
    """In [0, 1], whatever the ids are called."""
    return float(normalized_mutual_info_score(one.ravel(), other.ravel()))


@torch.no_grad()
def c4_of_groups(backbone: Backbone, pixels: Tensor, group: int) -> Iterator[Tensor]:
    """C4 of each group, float32, by the group's own batch statistics."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    backbone.train()
    for images in pixels.split(group):
        yield backbone.forward_c4((images / 255 - mean) / std)


def of_shards(place: str, *, count: int, size: int) -> Pictures:
    """Images of finished shards, as many as asked for, drawn by a fixed seed."""
    manifest = Manifest.read(place)
    reader, data = open_shards(place, manifest, DataSettings()), []
    for sample_id in drawn(manifest.stored, count):
        raw = reader.read(sample_id)
        _, labels = decode_labels(raw.members, key=raw.key, max_superpixels=manifest.max_superpixels)
        data.append((decode_pixels(raw.members["jpg"], key=raw.key), labels))
    return as_pictures(data, size)


def of_folder(folder: Path, *, count: int, size: int) -> Pictures:
    """Images of a folder and those below, and their superpixels, made here."""
    paths, data = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES), []
    for number in drawn(len(paths), count):
        with Image.open(paths[number]) as image:
            rgb = image.convert("RGB")
        opaque = np.dstack([np.asarray(rgb), np.full((rgb.height, rgb.width), 255, np.uint8)])
        data.append((np.array(rgb), label_maps_of(opaque, {"": FastSlicSettings(size=size)})[""]))
    return as_pictures(data, size)


def drawn(available: int, count: int) -> list[int]:
    """Which images: the same for every call."""
    assert available >= count > 0, f"{available} images, but {count} are wanted"
    return [int(i) for i in np.random.default_rng(0).permutation(available)[:count]]


def as_pictures(data: Sequence[tuple[np.ndarray, np.ndarray]], size: int) -> Pictures:
    """Resized as for training."""
    pixels = [resized(torch.from_numpy(image).permute(2, 0, 1), size) for image, _ in data]
    return Pictures(torch.stack(pixels), torch.stack([torch.from_numpy(labels.astype(np.int32)) for _, labels in data]))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as mistake:
        sys.exit(f"prior: error: {mistake}")
