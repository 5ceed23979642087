"""Image → label map of SLIC superpixels (Achanta et al. 2012; R2O paper §4.1: 100 segments at 224×224)."""

from __future__ import annotations

import fast_slic
import numpy as np
from fast_slic import Slic
from PIL import Image

from preprocess.config import SuperpixelSettings

if "x64/avx2" in fast_slic.supported_archs:
    from fast_slic.avx2 import SlicAvx2 as FastestSlic  # its labels are those of Slic, a third sooner
else:
    FastestSlic = Slic

RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def superpixels_of(image: np.ndarray, *, settings: SuperpixelSettings, backend: type[Slic] = FastestSlic) -> np.ndarray:
    """Superpixels of a whole image, which is resized to a square first (its aspect is not kept).

    Args:
        image: uint8 (H, W, 3), RGB.
    Returns:
        uint8 (size, size); ids 0 … n−1, none missing, in order of first appearance by rows; each 4-connected.
    """
    assert image.dtype == np.uint8
    assert image.ndim == 3
    side = (settings.size, settings.size)
    resized = np.ascontiguousarray(Image.fromarray(image).resize(side, RESAMPLE[settings.resample]))
    # A model keeps its centres, so one that is used again would make labels depend on the order of the images;
    # its threads outlive a fork and then hang.
    slic = backend(
        num_components=settings.segments,
        compactness=settings.compactness,
        min_size_factor=settings.min_size_factor,
        num_threads=1,
    )
    return connected(slic.iterate(resized, max_iter=settings.iterations)).astype(np.uint8)


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
