"""How well superpixels keep to what people outline: BSDS500 (Arbeláez et al. 2011), 50 validation images.

python -m tests.benchmarks.superpixels [--bsds FOLDER] [--images 50]

Prints a Markdown table. A label map is made as the pipeline makes it (the whole image resized to a square) and enlarged
to the size of the annotation by nearest neighbour. Each figure is the mean over the annotators of an image (4 to 9),
then over the images, with the standard error over the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import loadmat
from scipy.ndimage import distance_transform_edt
from scipy.stats import contingency

from preprocess.config import FastSlicSettings, FelzenszwalbSettings, GridSettings, SkimageSettings
from preprocess.shards.images import read_image
from preprocess.shards.superpixels import AnySettings, label_maps_of

BSDS = Path(__file__).parents[3] / "shared" / "data" / "BSDS500"
TOLERANCE = 0.0075  # of the diagonal, as in BSDS's own boundary benchmark


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Superpixels against human segmentations.")
    parser.add_argument("--bsds", type=Path, default=BSDS, help="folder with images/val and groundTruth/val")
    parser.add_argument("--images", type=int, default=50)
    args = parser.parse_args(argv)
    paths = sorted((args.bsds / "images" / "val").glob("*.jpg"))[: args.images]
    if not paths:
        sys.exit(f"{args.bsds}: no images/val/*.jpg; give the folder of BSDS500 with --bsds")
    print(f"{len(paths)} images\n")
    print("| map | segments | boundary recall | undersegmentation error | achievable accuracy |\n|---|---|---|---|---|")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in settings_compared()}
    for path in paths:
        truths = annotations(args.bsds / "groundTruth" / "val" / f"{path.stem}.mat")
        image = read_image(path.read_bytes(), quality=95, max_pixels=10**9, min_side=224)
        maps = label_maps_of(image.pixels, settings_compared(), extent=image.extent)
        for name, label_map in maps.items():
            full = np.asarray(Image.fromarray(label_map).resize(truths[0].shape[::-1], Image.Resampling.NEAREST))
            scores = [(boundary_recall(full, t), undersegmentation_error(full, t), accuracy(full, t)) for t in truths]
            found[name].append((int(label_map.max()) + 1, *np.mean(scores, axis=0)))
    for name, rows in found.items():
        mean, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
        cells = [f"{m:.4f} ± {e:.4f}" for m, e in zip(mean[1:], error[1:], strict=True)]
        print(f"| {name} | {mean[0]:.1f} | {' | '.join(cells)} |")
    return 0


def settings_compared() -> dict[str, AnySettings]:
    """By name: fast_slic over a grid of its settings, then what it is compared with."""
    wanted: dict[str, AnySettings] = {}
    for compactness in (2.0, 5.0, 10.0, 20.0, 40.0):
        for iterations in (3, 5, 10, 20):
            for factor in (0.1, 0.25):
                name = f"fast_slic, compactness {compactness:g}, {iterations} iterations, min {factor:g}"
                wanted[name] = FastSlicSettings(compactness=compactness, iterations=iterations, min_size_factor=factor)
    for resample in ("nearest", "box", "bicubic"):
        for iterations in (5, 10):
            name = f"fast_slic, {iterations} iterations, {resample}"
            wanted[name] = FastSlicSettings(iterations=iterations, resample=resample)
    for segments in (100, 120, 130, 140, 150):
        wanted[f"skimage, {segments} asked for"] = SkimageSettings(segments=segments)
    wanted["grid 10 × 10"] = GridSettings(rows=10, columns=10)
    wanted["grid 2 × 2"] = GridSettings(rows=2, columns=2)
    wanted["felzenszwalb, scale 1000, min 1000"] = FelzenszwalbSettings()
    return wanted


def annotations(path: Path) -> list[np.ndarray]:
    """The segmentations of one image, integer (H, W) each."""
    found = loadmat(path)["groundTruth"][0]
    return [cell["Segmentation"][0, 0].astype(np.int64) for cell in found]


def boundaries(label_map: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to their right or below: bool (H, W)."""
    found = np.zeros(label_map.shape, bool)
    found[:, :-1] |= label_map[:, :-1] != label_map[:, 1:]
    found[:-1] |= label_map[:-1] != label_map[1:]
    return found


def boundary_recall(label_map: np.ndarray, truth: np.ndarray) -> float:
    """The part of the annotated boundary with a boundary of the map no further than the tolerance (Euclidean)."""
    wanted = boundaries(truth)
    if not wanted.any():
        return 1.0
    most = TOLERANCE * float(np.hypot(*truth.shape))
    return float((distance_transform_edt(~boundaries(label_map))[wanted] <= most).mean())


def undersegmentation_error(label_map: np.ndarray, truth: np.ndarray) -> float:
    """Σ over segments s and regions g that meet of min(|s ∩ g|, |s − g|), by pixels (Neubert and Protzel 2012)."""
    counts = overlaps(label_map, truth)
    return float(np.minimum(counts, counts.sum(axis=1, keepdims=True) - counts).sum() / truth.size)


def accuracy(label_map: np.ndarray, truth: np.ndarray) -> float:
    """The part of the pixels that is right when each segment takes the region it shares most with."""
    return float(overlaps(label_map, truth).max(axis=1).sum() / truth.size)


def overlaps(label_map: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pixels that each segment (rows) shares with each region (columns)."""
    return np.asarray(contingency.crosstab(label_map.ravel(), truth.ravel()).count)


if __name__ == "__main__":
    sys.exit(main())
