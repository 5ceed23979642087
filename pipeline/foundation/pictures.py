"""Pictures of label maps: boundaries over an image, coloured regions, and sheets of tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

BOUNDARY_COLOUR = (255, 221, 0)
VOID = 255  # label of pixels that are never counted, in VOC's masks
MARGIN = 6
CAPTION_HEIGHT = 16


def boundaries(label_map: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another id, bool (H, W)."""
    edge = np.zeros(label_map.shape, dtype=bool)
    edge[:, :-1] |= label_map[:, 1:] != label_map[:, :-1]
    edge[:-1, :] |= label_map[1:, :] != label_map[:-1, :]
    return edge


def draw_boundaries(
    image: np.ndarray, label_map: np.ndarray, *, colour: tuple[int, int, int] = BOUNDARY_COLOUR
) -> np.ndarray:
    """The image (H, W, 3) uint8 with the boundaries of a label map of the same H × W drawn on it."""
    drawn = image.copy()
    drawn[boundaries(label_map)] = colour
    return drawn


def colour_regions(label_map: np.ndarray, *, image: np.ndarray | None = None, opacity: float = 0.65) -> np.ndarray:
    """A colour per id, uint8 (H, W, 3), laid over `image` where one is given. Equal ids get equal colours."""
    hue = (label_map.astype(np.float64) * 0.61803398875) % 1.0
    phase = (hue[..., None] + np.array([0.0, 1 / 3, 2 / 3])) * 2 * np.pi
    value = 1.0 - 0.35 * ((label_map // 7) % 3 / 2.0)[..., None]
    colours = (0.5 + 0.5 * np.cos(phase)) * value * 255
    if image is not None:
        colours = opacity * colours + (1 - opacity) * image
    painted: np.ndarray = colours.round().astype(np.uint8)
    return painted


def resize_labels(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of an integer map to (height, width); ids are copied, never mixed."""
    rows = ((np.arange(size[0]) + 0.5) * label_map.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * label_map.shape[1] / size[1]).astype(int)
    resized: np.ndarray = label_map[rows[:, None], columns[None, :]]
    return resized


def voc_palette() -> np.ndarray:
    """VOC's colours, uint8 (256, 3).

    Bits 0, 1, 2 of an id go to red, green, blue from the highest bit down, then bits 3, 4, 5, …
    """
    ids = np.arange(256)
    shifts = [sum(((ids >> (3 * level + channel)) & 1) << (7 - level) for level in range(3)) for channel in range(3)]
    return np.stack(shifts, axis=1).astype(np.uint8)


def sheet(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] = ()) -> Image.Image:
    """Tiles (uint8 H × W × 3, all of one size) in rows, with one caption per column on top."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    top = CAPTION_HEIGHT if captions else 0
    canvas = Image.new(
        "RGB", (columns * (width + MARGIN) + MARGIN, top + len(rows) * (height + MARGIN) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        draw.text((MARGIN + column * (width + MARGIN), 3), caption, fill="black")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            canvas.paste(Image.fromarray(tile), (MARGIN + x * (width + MARGIN), top + MARGIN + y * (height + MARGIN)))
    return canvas


def line_charts(
    series: Mapping[str, Sequence[float]], *, x: Sequence[float], x_label: str, width: int = 720, height: int = 140
) -> Image.Image:
    """One small chart per series, one below the other, over the same x.

    Args:
        series: title → values, as many as `x`; each chart spans its own least to greatest value.
        width, height: of one chart's plot, in pixels.
    """
    left, row = 64, height + 30
    canvas = Image.new("RGB", (left + width + MARGIN, len(series) * row + CAPTION_HEIGHT + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (title, values) in enumerate(series.items()):
        top = number * row + 20
        draw.rectangle((left, top, left + width, top + height), outline=(190, 190, 190))
        low, high = min(values), max(values)
        points = [
            (left + width * _share(a, min(x), max(x)), top + height * (1 - _share(b, low, high)))
            for a, b in zip(x, values, strict=True)
        ]
        draw.line(points, fill=(31, 90, 180), width=2)
        draw.text((left, top - 16), f"{title}: {values[-1]:.4g}", fill="black")
        draw.text((4, top), f"{high:.4g}", fill="black")
        draw.text((4, top + height - 12), f"{low:.4g}", fill="black")
    draw.text((left, len(series) * row), f"{x_label} {min(x):g} to {max(x):g}", fill="black")
    return canvas


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5
