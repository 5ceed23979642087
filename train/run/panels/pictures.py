"""Panels, their history and its animation, drawn from images and the masks of frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.artifacts.run_files import PANELS_FOLDER
from pipeline.foundation.files import atomic_writer
from pipeline.foundation.pictures import colour_regions, draw_boundaries, line_charts, resize_labels, sheet
from train.run.log import read_log
from train.run.panels.frames import Frame, evenly

OPACITY = 0.55  # of masks over the image, which stays visible
OUTLINE = (255, 255, 255)
PAIRS_ACROSS, MOST_PAIRS = 4, 8  # of the animation
MOST_FRAMES, MOST_BYTES = 40, 1_000_000
EFFORTS = ((85, 40), (60, 40), (60, 20), (40, 10))  # quality and most frames, until the file is small enough
WHOLE_MS, LEAST_MS, MOST_MS, LAST_MS = 8000, 150, 800, 3000  # of all frames but the last, of each, of the last
CURVES = ("loss", "num_clusters", "prediction_std", "projection_std", "valid_fraction")


def masks_over(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Masks in their colours over an image (H, W, 3). The cells of `labels` (h, w) stay squares, as they are."""
    whole = resize_labels(labels, image.shape[:2])
    return draw_boundaries(colour_regions(whole, image=image, opacity=OPACITY), whole, colour=OUTLINE)


def _outlined(image: np.ndarray, superpixels: np.ndarray) -> np.ndarray:
    return draw_boundaries(image, resize_labels(superpixels, image.shape[:2]))


def panel(images: Sequence[np.ndarray], superpixels: Sequence[np.ndarray], frame: Frame) -> Image.Image:
    """A row an image: itself, its superpixels, its masks at the epoch's K and at the K that the run ends with."""
    rows = [
        [image, _outlined(image, regions), masks_over(image, at_epoch), masks_over(image, at_end)]
        for image, regions, at_epoch, at_end in zip(images, superpixels, *frame.masks, strict=True)
    ]
    now, last = frame.num_clusters
    return sheet(rows, ["image", "superpixels", f"step {frame.step}, K = {now}", f"K = {last}, as at the end"])


def over_training(
    images: Sequence[np.ndarray], superpixels: Sequence[np.ndarray], frames: Sequence[Frame]
) -> Image.Image:
    """A row an image: itself, its superpixels, and its masks over the steps, all at the K that the run ends with.

    Captions say at which K the run then was.
    """
    rows = [
        [image, _outlined(image, regions), *(masks_over(image, frame.masks.at_end[row]) for frame in frames)]
        for row, (image, regions) in enumerate(zip(images, superpixels, strict=True))
    ]
    captions = [f"step {f.step}, K = {f.num_clusters[1]} (run: {f.num_clusters[0]})" for f in frames]
    return sheet(rows, ["image", "superpixels", *captions])


def animation_frame(images: Sequence[np.ndarray], frame: Frame) -> Image.Image:
    """Images, each beside its masks at the K of the epoch: regions that merge into objects."""
    pairs = [(image, masks_over(image, labels)) for image, labels in zip(images, frame.masks.at_epoch, strict=False)]
    rows = [
        [tile for pair in pairs[start : start + PAIRS_ACROSS] for tile in pair]
        for start in range(0, len(pairs), PAIRS_ACROSS)
    ]
    return sheet(
        rows, [f"step {frame.step}   K = {frame.num_clusters[0]}{'' if frame.step else '   (before training)'}"]
    )


def animated(frames: Sequence[Image.Image], *, form: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Pictures of one size as an animation of at most so many bytes; the last is held longer.

    Args:
        form: "WEBP" or "GIF". Where too large, it is made coarser, then shorter, then smaller.
    """
    while True:
        for quality, count in EFFORTS:
            data = _encoded(evenly(frames, count), form=form, quality=quality)
            if len(data) <= most_bytes:
                return data
        frames = [frame.reduce(2) for frame in evenly(frames, MOST_FRAMES)]


def _encoded(frames: Sequence[Image.Image], *, form: str, quality: int) -> bytes:
    each = min(max(WHOLE_MS // len(frames), LEAST_MS), MOST_MS)
    duration = [each] * (len(frames) - 1) + [LAST_MS]
    if form == "GIF":
        # One palette and no dithering: what does not change is then stored once.
        palette = _all_in_one(frames).quantize(256 * quality // 100)
        frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    first, *others = frames
    buffer = io.BytesIO()
    # Between key frames only what changes is stored, and the images themselves do not.
    options = {"quality": quality, "kmin": 3, "kmax": MOST_FRAMES} if form == "WEBP" else {}
    first.save(buffer, form, save_all=True, append_images=others, duration=duration, loop=0, **options)
    return buffer.getvalue()


def _all_in_one(frames: Sequence[Image.Image]) -> Image.Image:
    """Every fourth pixel each way of all frames, for their colours."""
    width, height = (max(side // 4, 1) for side in frames[0].size)
    joined = Image.new("RGB", (width, height * len(frames)))
    for place, frame in enumerate(frames):
        joined.paste(frame.resize((width, height), Image.Resampling.NEAREST), (0, place * height))
    return joined


def animation_form() -> str:
    """WEBP where this Pillow can animate it, else GIF."""
    Image.init()
    return "WEBP" if "WEBP" in Image.SAVE_ALL else "GIF"


def draw_curves(run: Path) -> None:
    """Write `panels/curves.png`: loss, K and the collapse monitors over the steps that the log holds."""
    log = read_log(run)
    if log:
        series = {name: [line[name] for line in log] for name in CURVES}
        charts = line_charts(series, x=[line["step"] for line in log], x_label="step")
        save_png(charts, run / PANELS_FOLDER / "curves.png")


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    with atomic_writer(path) as file:
        picture.save(file, format="PNG")
