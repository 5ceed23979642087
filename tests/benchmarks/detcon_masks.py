"""How many masks DetCon-B has: of images segmented at their own size against 224 × 224, and hard against soft on C5.

python -m tests.benchmarks.detcon_masks --images FOLDER [--count 200] [--seed 0] [--view-size 224] [--scale 1000]
    [--min-size 1000]

Prints a Markdown table. `segments`: of a whole image. `masks`: ids of a view with more than 1e-3 cells of its C5 grid.
`in both`: those that both views of an image have. `cells`: the part of C5's cells that hard masks give to the id that
they have in the map of every pixel of the image, cropped as it is. Means over the images, with the standard error.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.sample import decode_jpeg
from preprocess.config import FelzenszwalbSettings
from preprocess.shards.images import read_image
from preprocess.shards.superpixels import label_maps_of
from train.config.data import AugmentSettings, DataSettings
from train.data.views import Geometry, crop_label_map, draw_geometry, sample_rng
from train.r2o.masks import MIN_VALID_AREA, cell_areas, hard_masks

C5_STRIDE = 32
MAPS = ("every pixel", "native, stored at 224", "at 224")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="DetCon's masks, counted.")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEGs, at any depth")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--view-size", type=int, default=224)
    parser.add_argument("--scale", type=float, default=1000)
    parser.add_argument("--min-size", type=int, default=1000)
    args = parser.parse_args(argv)
    paths = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        sys.exit(f"{args.images}: no .jpg or .jpeg; give a folder of photographs with --images")
    chosen = np.sort(np.random.default_rng(args.seed).permutation(len(paths))[: args.count])
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in MAPS}
    sizes, seconds = [], 0.0
    for number in chosen:
        data, begin = paths[number].read_bytes(), time.process_time()
        whole = felzenszwalb_ids(decode_jpeg(data), scale=args.scale, min_size=args.min_size)
        seconds += time.process_time() - begin
        sizes.append(whole.size)
        maps = dict(zip(MAPS, (whole, *stored_maps(data, scale=args.scale, min_size=args.min_size)), strict=True))
        settings = DataSettings(view_size=args.view_size)
        rng = sample_rng(seed=args.seed, epoch=0, sample_id=int(number))
        height, width = whole.shape
        geometry = draw_geometry(rng, width=width, height=height, data=settings, augment=AugmentSettings())
        truth = crops(whole, geometry, args.view_size)
        for name, label_map in maps.items():
            found[name].append(figures(label_map, crops(label_map, geometry, args.view_size), truth))
    print(
        f"{len(chosen)} of {len(paths)} images, median {np.median(sizes):,.0f} pixels, seed {args.seed}, views of "
        f"{args.view_size}; segmenting one takes {seconds / len(chosen):.2f} s of a CPU\n"
    )
    print("| map | segments | masks, soft | masks, hard | in both, soft | in both, hard | cells |\n" + "|---" * 7 + "|")
    for name, rows in found.items():
        mean, error = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=1) / np.sqrt(len(rows))
        print(f"| {name} | {' | '.join(f'{m:.2f} ± {e:.2f}' for m, e in zip(mean, error, strict=True))} |")
    return 0


def felzenszwalb_ids(image: np.ndarray, *, scale: float, min_size: int) -> np.ndarray:
    """scikit-image's own map of an image, a byte an id: what DetCon stores."""
    from skimage.segmentation import felzenszwalb

    ids: np.ndarray = felzenszwalb(image, scale=scale, min_size=min_size).astype(np.uint8)
    return ids


def stored_maps(data: bytes, *, scale: float, min_size: int) -> list[np.ndarray]:
    """What shards hold of an image: segmented at its own size, and at 224."""
    wanted = {at: FelzenszwalbSettings(scale=scale, min_size=min_size, segmented_at=at) for at in ("native", "size")}
    image = read_image(data, quality=95, max_pixels=10**9, min_side=224)
    return [*label_maps_of(image.pixels, wanted, extent=image.extent, native=lambda: decode_jpeg(image.jpeg)).values()]


def crops(label_map: np.ndarray, geometry: Geometry, size: int) -> np.ndarray:
    """The map in both views, (2, size, size)."""
    return np.stack(
        [
            crop_label_map(label_map, tuple(box.tolist()), flipped=bool(flipped), size=(size, size))
            for box, flipped in zip(geometry.crop_box, geometry.flipped, strict=True)
        ]
    )


def figures(label_map: np.ndarray, views: np.ndarray, truth: np.ndarray) -> tuple[float, ...]:
    """A row of the table, of one image."""
    grid = (views.shape[1] // C5_STRIDE,) * 2
    soft = cell_areas(torch.from_numpy(views.astype(np.int64)), 256, grid)
    hard = hard_masks(soft)
    counts = [(masks.sum((2, 3)) > MIN_VALID_AREA) for masks in (soft, hard)]
    seen = [float(present.sum(1).float().mean()) for present in counts]
    both = [float(present.all(0).sum()) for present in counts]
    true = hard_masks(cell_areas(torch.from_numpy(truth.astype(np.int64)), 256, grid)).argmax(1)
    agreeing = overlap(hard.argmax(1).numpy(), true.numpy())
    return (len(np.unique(label_map)), *seen, *both, agreeing)


def overlap(cells: np.ndarray, truth: np.ndarray) -> float:
    """The part of the cells that is the truth's when each id stands for the true one it shares most cells with."""
    shared = np.zeros((256, 256), np.int64)
    np.add.at(shared, (cells.ravel(), truth.ravel()), 1)
    return float(shared.max(1).sum() / cells.size)


if __name__ == "__main__":
    sys.exit(main())
