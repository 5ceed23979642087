"""Predictions beside the truth, in VOC's colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.foundation.pictures import VOID, resize_labels, sheet, voc_palette
from train.evals.segmentation.augment import LabelledImage

TILE = 192  # pixels


def fitted_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that fit into a tile, aspect kept."""
    factor = TILE / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def prediction_strip(predictions: Sequence[UInt8[np.ndarray, "h w"]]) -> bytes:
    """Predictions as one palette PNG: a column of tiles, each prediction in its tile's left upper corner, else void."""
    strip = np.full((TILE * len(predictions), TILE), VOID, dtype=np.uint8)
    for row, prediction in enumerate(predictions):
        height, width = fitted_size(*prediction.shape)
        strip[row * TILE : row * TILE + height, :width] = resize_labels(prediction, (height, width))
    picture = Image.fromarray(strip)
    picture.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def predictions_sheet(samples: Sequence[LabelledImage], strips: Mapping[str, bytes]) -> bytes:
    """A PNG with a row per sample: image, truth, and one column per caption from its `prediction_strip`."""
    opened = [np.asarray(Image.open(io.BytesIO(strip))) for strip in strips.values()]
    tile_height = max(fitted_size(*sample.labels.shape)[0] for sample in samples)
    rows = []
    for row, sample in enumerate(samples):
        size = fitted_size(*sample.labels.shape)
        image = np.asarray(Image.fromarray(sample.image).resize(size[::-1], Image.Resampling.BILINEAR))
        maps = [resize_labels(sample.labels, size)]
        maps += [strip[row * TILE : row * TILE + size[0], : size[1]] for strip in opened]
        rows.append([_tile(picture, tile_height) for picture in (image, *(voc_palette()[m] for m in maps))])
    buffer = io.BytesIO()
    sheet(rows, ["image", "truth", *strips]).save(buffer, format="PNG")
    return buffer.getvalue()


def _tile(picture: np.ndarray, height: int) -> np.ndarray:
    tile = np.full((height, TILE, 3), 255, dtype=np.uint8)
    tile[: picture.shape[0], : picture.shape[1]] = picture
    return tile
