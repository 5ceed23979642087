"""Pictures of refinement: image, superpixels and refined masks of fixed images, and how the masks change."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.run_files import PANELS_FOLDER
from pipeline.artifacts.sample import IMAGE_MEMBER
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import atomic_writer
from pipeline.foundation.pictures import (
    MARGIN,
    colour_regions,
    draw_boundaries,
    line_charts,
    resize_labels,
    sheet,
)
from train.config.pretrain import PretrainSettings
from train.data.augment import normalize
from train.data.resize import resized
from train.data.shards.reader import RawSample, ShardReader
from train.data.views import decode_labels, decode_pixels
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O
from train.run.log import read_log

TILE = 160  # pixels
MAX_HISTORY_COLUMNS = 8
CURVES = ("loss", "num_clusters", "prediction_std", "projection_std", "valid_fraction")


class Panels:
    """Draws one clustering group of fixed images, evenly spaced over the shards, whenever it is asked to.

    K and superpixels are those of the epoch that is asked for.
    """

    def __init__(self, reader: ShardReader, settings: PretrainSettings, device: torch.device) -> None:
        count = settings.refine.clustering_group_size
        ids = np.linspace(0, reader.manifest.stored - 1, count).astype(int)
        images, superpixels = zip(*(_readable(reader, int(i), settings) for i in ids), strict=True)
        self._settings, self._device = settings, device
        self._images = normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device))
        self._superpixels = {name: np.stack([maps[name] for maps in superpixels]) for name in superpixels[0]}
        shown = images[: settings.run.panel_images]
        self._tiles = [np.asarray(Image.fromarray(image).resize((TILE, TILE))) for image in shown]

    def refined_maps(self, model: R2O, *, epoch: int) -> np.ndarray:
        """Refined maps (N, h, w) of the fixed images. Every rank must take part: batch statistics are shared."""
        num_clusters = self._settings.num_clusters(epoch)
        uniforms = seeding_uniforms(num_clusters, seed=self._settings.seed, step=0, first_group=0, num_groups=1)
        superpixels = torch.from_numpy(self._superpixels_of(epoch)).to(self._device)
        return model.refine(self._images, superpixels, uniforms.to(self._device)).cpu().numpy()

    def draw(self, run: Path, refined_maps: np.ndarray, *, step: int, epoch: int) -> Path:
        """Write `panels/step-00000936.png`, steps done, and `panels/over_training.png` from all there are."""
        rows = [
            [
                image,
                draw_boundaries(image, resize_labels(labels, (TILE, TILE))),
                colour_regions(resize_labels(refined, (TILE, TILE)), image=image),
            ]
            for image, labels, refined in zip(self._tiles, self._superpixels_of(epoch), refined_maps, strict=False)
        ]
        folder = run / PANELS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        num_clusters = self._settings.num_clusters(epoch)
        _save(sheet(rows, ["image", "superpixels", f"step {step}, K = {num_clusters}"]), path)
        _save(_over_training(sorted(folder.glob("step-*.png"))), folder / "over_training.png")
        return path

    def _superpixels_of(self, epoch: int) -> np.ndarray:
        return self._superpixels[self._settings.superpixel_map(epoch)]


def _readable(
    reader: ShardReader, sample_id: int, settings: PretrainSettings
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image and label maps of a sample or, where it is damaged and that is to be skipped, of the next whole one."""
    manifest, size = reader.manifest, settings.data.image_size
    names = [*settings.data.superpixel_maps] or [MAIN_MAP]

    def decode(raw: RawSample, name: str) -> tuple[np.ndarray, np.ndarray]:
        limit = manifest.map_stats(name).max_superpixels
        labels = decode_labels(raw.members, key=raw.key, max_superpixels=limit, map_name=name)[1]
        return decode_pixels(raw.members[IMAGE_MEMBER], key=raw.key), labels.astype(np.int32)

    for tries_left in reversed(range(manifest.stored)):
        try:
            decoded = {name: reader.decoded(sample_id, partial(decode, name=name), name) for name in names}
            pixels = torch.from_numpy(decoded[names[0]][0]).permute(2, 0, 1)
            labels = {name: labels for name, (_, labels) in decoded.items()}
            return resized(pixels, size).permute(1, 2, 0).numpy(), labels
        except InputError:
            if settings.data.on_damage == "fail" or not tries_left:
                raise
            sample_id = (sample_id + 1) % manifest.stored
    raise AssertionError


def _over_training(panels: list[Path]) -> Image.Image:
    """The first panel's image and superpixels, then the refined column of up to 8 panels, first and last included."""
    chosen = np.unique(np.linspace(0, len(panels) - 1, MAX_HISTORY_COLUMNS).round().astype(int))
    column = TILE + MARGIN
    with Image.open(panels[0]) as first:
        joined = Image.new("RGB", (column * (2 + len(chosen)) + MARGIN, first.height), "white")
        joined.paste(first.crop((0, 0, 2 * column, first.height)), (0, 0))
    for place, index in enumerate(chosen):
        with Image.open(panels[index]) as panel:
            joined.paste(panel.crop((2 * column, 0, 3 * column + MARGIN, panel.height)), ((2 + place) * column, 0))
    return joined


def draw_curves(run: Path) -> None:
    """Write `panels/curves.png`: loss, K and the collapse monitors over the steps that the log holds."""
    log = read_log(run)
    if log:
        series = {name: [line[name] for line in log] for name in CURVES}
        _save(line_charts(series, x=[line["step"] for line in log], x_label="step"), run / PANELS_FOLDER / "curves.png")


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_writer(path) as file:
        picture.save(file, format="PNG")
