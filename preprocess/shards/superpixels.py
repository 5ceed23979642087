"""Image → label maps: SLIC superpixels (Achanta et al. 2012; R2O paper §4.1: 100 segments at 224×224), other priors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import ModuleType

import fast_slic
import numpy as np
from fast_slic import Slic
from PIL import Image

from pipeline.artifacts.sample import MAX_8BIT_LABELS
from pipeline.foundation.errors import InputError
from preprocess.config import FastSlicSettings, FelzenszwalbSettings, GridSettings, SkimageSettings

if "x64/avx2" in fast_slic.supported_archs:
    from fast_slic.avx2 import SlicAvx2 as FastestSlic  # its labels are those of Slic, a third sooner
else:
    FastestSlic = Slic

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What is larger is reduced to it before it is segmented at "its own" size. Felzenszwalb takes some 340 bytes and up to
# 6 µs a pixel: 1.4 of `max_memory_mb`'s 2 GiB, and 25 of `max_cpu_seconds`' 60.
MAX_NATIVE_PIXELS = 2**22
AnySettings = FastSlicSettings | SkimageSettings | GridSettings | FelzenszwalbSettings


def label_maps_of(
    pixels: np.ndarray,
    wanted: Mapping[str, AnySettings],
    *,
    extent: tuple[float, float] | None = None,
    native: Callable[[], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Several label maps of a whole image, which is resized once for each size and filter.

    Args:
        pixels: uint8 (H, W, 4), R, G, B and an unused byte.
        extent: where the image ends in `pixels`, (x, y); their size where not given.
        native: gives all pixels of the image, uint8 (H, W, 3), for settings that segment it at its own size.
    Returns:
        By name, as `superpixels_of` or `native_map` gives it.
    """
    resized: dict[tuple[int, str], np.ndarray] = {}
    made: dict[str, np.ndarray] = {}
    for name, settings in wanted.items():
        if isinstance(settings, FelzenszwalbSettings) and settings.is_native:
            assert native is not None
            made[name] = native_map(native(), settings=settings)
            continue
        form = (settings.size, settings.resample)
        if form not in resized:
            resized[form] = resize(pixels, size=settings.size, resample=settings.resample, extent=extent)
        made[name] = superpixels_of(resized[form], settings=settings)
    return made


def native_map(image: np.ndarray, *, settings: FelzenszwalbSettings) -> np.ndarray:
    """DetCon's masks: the image is segmented at its own size, and the ids at the stored map's pixel centres are kept.

    Ids above 255 begin again at 0, as DetCon keeps a byte of each (`compute_fh_segmentation`); that also bounds what a
    batch of masks takes. As there, segments are 8-connected. What lies between the centres may be lost.

    Args:
        image: uint8 (H, W, 3), RGB; above MAX_NATIVE_PIXELS it is reduced to them first.
    Returns:
        (size, size) uint8; ids 0 … n−1, none missing, in order of first appearance by rows.
    Raises:
        InputError: scikit-image is not installed.
    """
    height, width = image.shape[:2]
    if height * width > MAX_NATIVE_PIXELS:
        factor = math.sqrt(MAX_NATIVE_PIXELS / (height * width))
        reduced = (max(1, int(width * factor)), max(1, int(height * factor)))
        image = np.asarray(Image.fromarray(image).resize(reduced, RESAMPLE[settings.resample]))
        width, height = reduced
    found = _felzenszwalb(image, settings).astype(np.uint8)
    places = (np.arange(settings.size) + 0.5) / settings.size
    sampled = found[(places * height).astype(int)[:, None], (places * width).astype(int)]
    _, first, inverse = np.unique(sampled, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.uint8)[inverse].reshape(sampled.shape)


def resize(pixels: np.ndarray, *, size: int, resample: str, extent: tuple[float, float] | None = None) -> np.ndarray:
    """The image in `pixels` (H, W, 4) up to `extent` as a square, its aspect not kept: uint8 (size, size, 3)."""
    assert pixels.dtype == np.uint8
    height, width, depth = pixels.shape
    assert depth == 4
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)  # Pillow's own layout: no copy
    box = (0, 0, *(extent or (width, height)))
    return np.asarray(image.resize((size, size), RESAMPLE[resample], box=box).convert("RGB"))


def superpixels_of(image: np.ndarray, *, settings: AnySettings, backend: type[Slic] = FastestSlic) -> np.ndarray:
    """The label map of an image of the settings' size.

    Args:
        image: uint8 (size, size, 3), RGB.
        backend: class of fast_slic, for settings of that kind.
    Returns:
        (size, size), uint8 where the ids fit, else uint16; ids 0 … n−1, none missing, in order of first appearance by
        rows; each 4-connected.
    Raises:
        InputError: scikit-image is needed and not installed.
    """
    assert image.shape == (settings.size, settings.size, 3)
    label_map = _label_map(image, settings, backend)
    return label_map.astype(np.uint8 if label_map.max() < MAX_8BIT_LABELS else np.uint16)


def _label_map(image: np.ndarray, settings: AnySettings, backend: type[Slic]) -> np.ndarray:
    if isinstance(settings, FastSlicSettings):
        found = _fast_slic(image, settings, backend)
        return found if _first_is_connected(found) else connected(found)
    if isinstance(settings, GridSettings):
        return grid(settings.size, rows=settings.rows, columns=settings.columns)
    if isinstance(settings, FelzenszwalbSettings):
        return connected(_felzenszwalb(image, settings))
    found = _segmentation(settings).slic(
        image,
        n_segments=settings.segments,
        compactness=settings.compactness,
        max_num_iter=settings.iterations,
        sigma=settings.sigma,
        min_size_factor=settings.min_size_factor,
        max_size_factor=settings.max_size_factor,
        start_label=0,
    )
    return connected(found)


def _felzenszwalb(image: np.ndarray, settings: FelzenszwalbSettings) -> np.ndarray:
    labels: np.ndarray = _segmentation(settings).felzenszwalb(
        image, scale=settings.scale, sigma=settings.sigma, min_size=settings.min_size
    )
    return labels


def _segmentation(settings: AnySettings) -> ModuleType:
    """scikit-image's module, which few need."""
    try:
        from skimage import segmentation
    except ImportError:
        raise InputError(f"backend {settings.backend} needs scikit-image; pip install -e '.[skimage]'") from None
    module: ModuleType = segmentation
    return module


def _fast_slic(image: np.ndarray, settings: FastSlicSettings, backend: type[Slic]) -> np.ndarray:
    # A model keeps its centres, so one that is used again would make labels depend on the order of the images;
    # its threads outlive a fork and then hang.
    slic = backend(
        num_components=settings.segments,
        compactness=settings.compactness,
        min_size_factor=settings.min_size_factor,
        num_threads=1,
    )
    labels: np.ndarray = slic.iterate(np.ascontiguousarray(image), max_iter=settings.iterations)
    return labels


def _first_is_connected(label_map: np.ndarray) -> bool:
    """Whether the pixels of label 0 hang together, which of fast_slic's maps says that every segment does.

    Its last step numbers components in order of first appearance and gives each small one the label of the component to
    the left of its first pixel, or above it: a neighbour. Only the component of the first pixel has none; where that
    is small, it takes label 0 from afar (cca.cpp of fast-slic 0.4.0, `ConnectivityEnforcer::execute`).
    """
    mask = label_map == 0
    mask = mask[: mask.any(axis=1).nonzero()[0][-1] + 1]
    mask = mask[:, : mask.any(axis=0).nonzero()[0][-1] + 1]
    return int(label_pieces(mask)[1].sum()) == 1


def grid(size: int, *, rows: int, columns: int) -> np.ndarray:
    """Boxes of (size / rows) × (size / columns) pixels, rounded down at their borders: int (size, size)."""
    places = np.arange(size)
    return (places * rows // size)[:, None] * columns + places * columns // size


def connected(label_map: np.ndarray) -> np.ndarray:
    """The label map with every segment 4-connected and ids renumbered 0 … n−1 in order of first appearance by rows.

    Of a segment that lies in several pieces the largest stays; every other piece joins the neighbour with which it
    shares the longest border. So there are never more segments than before. Integer (H, W) → int32 (H, W).
    """
    pieces, label_of_piece = label_pieces(label_map)
    if len(np.unique(label_of_piece)) == len(label_of_piece):
        return pieces
    return label_pieces(_merged_fragments(pieces, label_of_piece=label_of_piece))[0]


def label_pieces(label_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 4-connected pieces of equal ids, numbered in order of first appearance by rows, and the id of each piece.

    Union-find over horizontal runs: each points to the smallest run that it is known to be joined with.
    Integer (H, W) → int32 (H, W) and the ids (pieces,).
    """
    starts = np.ones(label_map.shape, dtype=bool)
    starts[:, 1:] = label_map[:, 1:] != label_map[:, :-1]
    run_of_pixel = np.cumsum(starts, dtype=np.int32) - np.int32(1)
    joined = np.flatnonzero((label_map[1:] == label_map[:-1]) & (starts[1:] | starts[:-1]))
    upper, lower = (run_of_pixel[joined + down].astype(np.intp) for down in (0, label_map.shape[1]))
    root = np.arange(int(run_of_pixel[-1]) + 1)
    root[lower] = upper  # of several runs above, one; the loop joins the others
    root = _compressed(root)
    while (apart := root[upper] != root[lower]).any():
        upper, lower = root[upper[apart]], root[lower[apart]]
        np.minimum.at(root, np.maximum(upper, lower), np.minimum(upper, lower))
        root = _compressed(root)
    is_root = root == np.arange(len(root))
    number = np.cumsum(is_root, dtype=np.int32) - np.int32(1)
    return number[root][run_of_pixel].reshape(label_map.shape), label_map[starts][is_root]


def _compressed(root: np.ndarray) -> np.ndarray:
    """Each run's pointer moved on to where the pointers end."""
    while ((further := root[root]) != root).any():
        root = further
    return root


def _merged_fragments(pieces: np.ndarray, *, label_of_piece: np.ndarray) -> np.ndarray:
    """Pieces (H, W) with all but the largest of each label given to a neighbour that stays."""
    count = len(label_of_piece)
    by_size = np.lexsort((np.arange(count), -np.bincount(pieces.ravel())))
    stays = np.zeros(count, dtype=bool)
    stays[by_size[np.unique(label_of_piece[by_size], return_index=True)[1]]] = True
    while not stays[pieces].all():
        pairs = [(pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])]
        left = np.concatenate([side.ravel() for a, b in pairs for side in (a, b)])
        right = np.concatenate([side.ravel() for a, b in pairs for side in (b, a)])
        border = ~stays[left] & stays[right]
        pair, length = np.unique(left[border] * count + right[border], return_counts=True)
        target = np.arange(count)
        for index in np.argsort(length, kind="stable"):
            target[pair[index] // count] = pair[index] % count
        pieces = target[pieces]
    return pieces
