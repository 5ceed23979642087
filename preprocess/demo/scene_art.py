"""Drawing one scene: lit, textured shapes that cover each other on a textured ground, with their exact masks.

The shape alone is the class: colours, textures, light, place and size come from the same distributions for all.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from preprocess.config import SceneSettings, Shape

OVERSAMPLING = 4
SHADOW = 0.025  # radius of a shadow's blur, a share of the picture's side
RELIEF = 0.12  # width of an object's rounded edge, a share of its radius
MIN_CONTRAST = 0.3  # between the mean colours of an object and what it lies on, Euclidean in [0, 1]³


@dataclass(frozen=True, kw_only=True)
class Scene:
    """`image` uint8 (S, S, 3); `classes` uint8 (S, S), 0 = background, else 1 + place in `settings.shapes`;
    `instances` uint8 (S, S), 0 = background, else the object, counted from the farthest.
    """

    image: np.ndarray
    classes: np.ndarray
    instances: np.ndarray

    @property
    def dominant(self) -> int:
        """The class id with the most visible pixels."""
        return int(np.bincount(self.classes.ravel())[1:].argmax()) + 1


class _Object(NamedTuple):
    class_id: int
    radius: float
    centre: tuple[float, float]


def make_scene(settings: SceneSettings, *, stream: int, index: int) -> Scene:
    """Scene `index` of an independent `stream`; the same for the same arguments, whatever else is drawn."""
    rng = np.random.default_rng([settings.seed, stream, index])
    size = settings.size
    canvas, ground = _painted(rng, size, avoid=None)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(angle), np.sin(angle)])
    classes = np.zeros((size, size), dtype=np.uint8)
    instances = np.zeros((size, size), dtype=np.uint8)
    for number, thing in enumerate(_objects(rng, settings, first=index % len(settings.shapes)), start=1):
        alpha = _coverage(_outline(rng, settings.shapes[thing.class_id - 1]), thing, rng.uniform(0, 2 * np.pi), size)
        paint, _ = _painted(rng, size, avoid=ground)
        _lay(canvas, alpha, paint, light, thing.radius)
        covered = alpha >= 0.5
        classes[covered], instances[covered] = thing.class_id, number
    image = _photographed(rng, canvas, light)
    return Scene(image=image, classes=classes, instances=instances)


def _lay(canvas: np.ndarray, alpha: np.ndarray, paint: np.ndarray, light: np.ndarray, radius: float) -> None:
    """Lay a lit object and its shadow on the canvas (3, S, S), in place."""
    size = len(alpha)
    away = -light * size * 0.05
    reaches = 3 * _reach(size * SHADOW) + round(np.abs(away).max()), 3 * _reach(size * radius * RELIEF)
    # Outside this window nothing changes, not even by rounding: sums of zeros are zero.
    window = _window(alpha, margin=max(reaches))
    alpha, paint, under = alpha[window], paint[:, *window], canvas[:, *window]
    shadow = _shifted(_soft(alpha, size * SHADOW), away)
    under *= 1 - 0.5 * np.clip(shadow, 0, 1) * (1 - alpha)
    lit = np.clip(paint * _relief(alpha, light, size, radius), 0, 1)
    under += alpha * (lit - under)


def _window(alpha: np.ndarray, *, margin: int) -> tuple[slice, slice]:
    """The rows and columns of `alpha` (S, S) that lie within `margin` pixels of a covered one."""
    rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
    down, across = (slice(max(found[0] - margin, 0), found[-1] + margin + 1) for found in (rows, columns))
    return down, across


def _objects(rng: np.random.Generator, settings: SceneSettings, *, first: int) -> list[_Object]:
    """One large object of shape `first`, so that classes balance, and smaller ones; farthest first."""
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    others = [
        _Object(int(rng.integers(len(settings.shapes))) + 1, rng.uniform(0.10, 0.19), tuple(rng.uniform(0.08, 0.92, 2)))
        for _ in range(count - 1)
    ]
    large = _Object(first + 1, rng.uniform(0.24, 0.36), tuple(rng.uniform(0.32, 0.68, 2)))
    others.insert(int(rng.integers(len(others) + 1)), large)
    return others


def _outline(rng: np.random.Generator, shape: Shape) -> list[np.ndarray]:
    """Polygons (N, 2) of a shape within the unit disc: the first is filled, a second is a hole."""

    def regular(corners: int, radius: float = 1.0) -> np.ndarray:
        turn = 2 * np.pi * np.arange(corners) / corners
        return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)

    if shape == "disc":
        return [regular(72) * [1, rng.uniform(0.75, 1)]]
    if shape == "box":
        return [regular(4) @ np.array([[0.71, 0.71], [-0.71, 0.71]]) * [1, rng.uniform(0.6, 1)]]
    if shape == "triangle":
        return [regular(3) * [1, rng.uniform(0.8, 1.1)]]
    if shape == "star":
        points = regular(10)
        points[1::2] *= rng.uniform(0.38, 0.5)
        return [points]
    if shape == "ring":
        squeeze = np.array([1, rng.uniform(0.75, 1)])
        return [regular(72) * squeeze, regular(72, rng.uniform(0.45, 0.62)) * squeeze]
    arm = rng.uniform(0.25, 0.36)
    corner = np.array([[1, -arm], [1, arm], [arm, arm]])
    quarter = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([corner @ np.linalg.matrix_power(quarter, turns) for turns in range(4)])]


def _coverage(outline: list[np.ndarray], thing: _Object, angle: float, size: int) -> np.ndarray:
    """Covered fraction of each pixel, float (S, S) in [0, 1]."""
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    fine = Image.new("L", (size * OVERSAMPLING, size * OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    for value, polygon in zip((255, 0), outline, strict=False):
        corners = (polygon @ turn * thing.radius + thing.centre) * size * OVERSAMPLING
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=value)
    return np.asarray(fine.reduce(OVERSAMPLING), dtype=np.float64) / 255


def _painted(rng: np.random.Generator, size: int, *, avoid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """A textured plane (3, S, S) in two colours, and its mean colour, at a distance from `avoid`."""
    while True:
        hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.1, 0.8), rng.uniform(0.3, 0.95)
        second_hue = hue + (rng.uniform(-0.5, 0.5) if rng.random() < 0.25 else rng.uniform(-0.07, 0.07))
        one = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        other = np.array(colorsys.hsv_to_rgb(second_hue % 1, saturation, value * rng.uniform(0.5, 0.85)))
        mean = (one + other) / 2
        if avoid is None or np.linalg.norm(mean - avoid) >= MIN_CONTRAST:
            break
    texture = TEXTURES[int(rng.integers(len(TEXTURES)))](rng, size)
    amount = np.clip(0.75 * texture + 0.25 * _fractal(rng, size), 0, 1)
    return one[:, None, None] + amount * (other - one)[:, None, None], mean


def _relief(alpha: np.ndarray, light: np.ndarray, size: int, radius: float) -> np.ndarray:
    """Brightness (h, w) around 1 of a shape with rounded edges, `radius` times the picture's side `size` large."""
    height = _soft(alpha, size * radius * RELIEF)
    down, right = np.gradient(height)
    slope = -(right * light[0] + down * light[1]) * size * radius
    brightness: np.ndarray = 1 + 0.45 * np.tanh(1.5 * slope)
    return brightness


def _photographed(rng: np.random.Generator, canvas: np.ndarray, light: np.ndarray) -> np.ndarray:
    """The scene under uneven light with a colour cast and grain, uint8 (S, S, 3)."""
    size = canvas.shape[1]
    across, down = _grid(size)
    falloff = 1 + rng.uniform(0.1, 0.35) * ((across - 0.5) * light[0] + (down - 0.5) * light[1])
    cast = rng.uniform(0.92, 1.06, 3) * rng.uniform(0.8, 1.1)
    grain = rng.normal(0, rng.uniform(0.005, 0.025), (size, size))
    photo = (np.clip(canvas * falloff * cast[:, None, None] + grain, 0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(photo.transpose(1, 2, 0))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in [0, 1]: across and down, each (S, S)."""
    centres = (np.arange(size) + 0.5) / size
    return np.broadcast_to(centres, (size, size)), np.broadcast_to(centres[:, None], (size, size))


def _resized(field: np.ndarray, width: int, height: int, filter_: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize((width, height), filter_), dtype=np.float64)


def _reach(radius: float) -> int:
    return max(1, round(radius))


def _soft(field: np.ndarray, radius: float) -> np.ndarray:
    """The field (h, w) blurred by three means over 2·radius + 1 pixels each way, close to a Gaussian."""
    reach = _reach(radius)
    width = 2 * reach + 1
    for _ in range(2 * 3):
        padded = np.empty((field.shape[0] + width, field.shape[1]))
        padded[: reach + 1], padded[reach + 1 : -reach], padded[-reach:] = field[:1], field, field[-1:]
        sums = np.cumsum(padded, axis=0)
        field = ((sums[width:] - sums[:-width]) / width).T
    return field


def _shifted(field: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The field moved by whole pixels (across, down), with its border repeated."""
    rows = np.clip(np.arange(field.shape[0]) - round(offset[1]), 0, field.shape[0] - 1)
    columns = np.clip(np.arange(field.shape[1]) - round(offset[0]), 0, field.shape[1] - 1)
    moved: np.ndarray = field[rows[:, None], columns]
    return moved


def _turned(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    across, down = _grid(size)
    angle = rng.uniform(0, np.pi)
    return across * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - across * np.sin(angle)


def _fractal(rng: np.random.Generator, size: int, base: int = 3) -> np.ndarray:
    total = np.zeros((size, size))
    for octave in range(5):
        cells = base * 2**octave
        total += 0.6**octave * _resized(rng.random((cells, cells)), size, size, Image.Resampling.BICUBIC)
    low, high = total.min(), total.max()
    tone: np.ndarray = (total - low) / (high - low)
    return tone


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    across, _ = _turned(rng, size)
    wave = np.sin(2 * np.pi * rng.uniform(5, 14) * across + rng.uniform(0, 4) * _fractal(rng, size, 2))
    return 0.5 + 0.5 * np.tanh(rng.uniform(1, 5) * wave)


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    across, down = _turned(rng, size)
    cells = rng.uniform(6, 14)
    return (np.floor(across * cells) + np.floor(down * cells)) % 2


def _bricks(rng: np.random.Generator, size: int) -> np.ndarray:
    across, down = _grid(size)
    rows = int(rng.integers(7, 14))
    row = np.floor(down * rows).astype(int)
    along = across * rows / 2 + 0.5 * (row % 2)
    tone = rng.random((rows, rows + 2))[row, np.floor(along).astype(int)]
    mortar = ((down * rows) % 1 < 0.14) | (along % 1 < 0.07)
    return np.where(mortar, 1.0, 0.5 * tone)


def _grass(rng: np.random.Generator, size: int) -> np.ndarray:
    long, fine = int(rng.integers(8, 14)), size
    blades = _resized(rng.random((long, fine)), size, size, Image.Resampling.BICUBIC)
    tone: np.ndarray = np.clip(blades if rng.random() < 0.5 else blades.T, 0, 1)
    return tone


def _spots(rng: np.random.Generator, size: int) -> np.ndarray:
    across, down = _turned(rng, size)
    cells = 2 * np.pi * rng.uniform(5, 10)
    return 0.5 + 0.5 * np.tanh(6 * (np.cos(across * cells) + np.cos(down * cells) - rng.uniform(0.2, 1)))


def _gradient(rng: np.random.Generator, size: int) -> np.ndarray:
    across, _ = _turned(rng, size)
    tone: np.ndarray = (across - across.min()) / np.ptp(across)
    return tone


def _speckle(rng: np.random.Generator, size: int) -> np.ndarray:
    cells = int(rng.integers(size // 3, size))
    tone: np.ndarray = np.clip(_resized(rng.random((cells, cells)), size, size, Image.Resampling.BILINEAR), 0, 1)
    return tone


TEXTURES: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _fractal, _stripes, _checks, _bricks, _grass, _spots, _gradient, _speckle,
)  # fmt: skip
