"""Pictures of refinement: fixed images, their superpixels and refined masks, and how the masks change."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.run_files import PANELS_FOLDER
from pipeline.artifacts.sample import IMAGE_MEMBER
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from train.config.pretrain import PretrainSettings
from train.data.augment import normalize
from train.data.resize import resized
from train.data.shards.reader import RawSample, ShardReader
from train.data.views import decode_labels, decode_pixels
from train.r2o.kmeans import seeding_uniforms
from train.r2o.model import R2O
from train.run.panels.frames import Frame, Refined, follow, panel_name, read_frames, write_frame
from train.run.panels.pictures import (
    MOST_FRAMES,
    MOST_PAIRS,
    animated,
    animation_form,
    animation_frame,
    over_training,
    panel,
    save_png,
)

TILE = 160  # pixels
ANIMATED_TILE = 120  # a multiple of most grids' cells
MAX_HISTORY_COLUMNS = 8


class Panels:
    """Draws one clustering group of fixed images, evenly spaced over the shards, whenever it is asked to.

    Masks are shown at the K of the epoch, and at the K of the last epoch, which can be compared over the run.
    """

    def __init__(self, reader: ShardReader, settings: PretrainSettings, device: torch.device) -> None:
        count = settings.refine.clustering_group_size
        ids = np.linspace(0, reader.manifest.stored - 1, count).astype(int)
        images, superpixels = zip(*(_readable(reader, int(i), settings) for i in ids), strict=True)
        self._settings, self._device = settings, device
        self._images = normalize(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).to(device))
        self._superpixels = {name: np.stack([maps[name] for maps in superpixels]) for name in superpixels[0]}
        shown = images[: settings.run.panel_images]
        self._tiles = [_tile(image, TILE) for image in shown]
        self._animated = [_tile(image, ANIMATED_TILE) for image in shown[:MOST_PAIRS]]

    def refined_maps(self, model: R2O, *, epoch: int) -> Refined:
        """Refined maps (N, h, w) of the fixed images. Every rank must take part: batch statistics are shared."""
        c4 = model.whole_c4(self._images) if model.refinement.needs_features else None
        at_epoch, end = self._refined(model, epoch, c4), self._settings.epochs - 1
        same = self._settings.num_clusters(epoch) == self._settings.num_clusters(end)
        return Refined(at_epoch, at_epoch if same else self._refined(model, end, c4))

    def are_drawn(self, run: Path, *, step: int) -> bool:
        """Whether the panel of a step is there."""
        return (run / PANELS_FOLDER / f"{panel_name(step)}.png").exists()

    def draw(self, run: Path, refined_maps: Refined, *, step: int, epoch: int) -> Path:
        """Write `panels/step-00000936.png`, its frame, and `panels/over_training.png` from all frames up to it.

        Args:
            step: steps done.
        """
        folder = run / PANELS_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        frame = self._followed(folder, refined_maps, step=step, epoch=epoch)
        write_frame(folder, frame)
        superpixels = list(self._superpixels_of(epoch)[: len(self._tiles)])
        path = folder / f"{panel_name(step)}.png"
        save_png(panel(self._tiles, superpixels, frame), path)
        history = self._frames(folder, step, most=MAX_HISTORY_COLUMNS)
        save_png(over_training(self._tiles, superpixels, history), folder / "over_training.png")
        return path

    def animate(self, run: Path, *, step: int) -> Path:
        """Write `panels/over_training.webp` from the frames up to `step`; a GIF where Pillow animates no WebP."""
        folder, form = run / PANELS_FOLDER, animation_form()
        frames = [animation_frame(self._animated, frame) for frame in self._frames(folder, step, most=MOST_FRAMES)]
        path = folder / f"over_training.{form.lower()}"
        write_atomic(path, animated(frames, form=form))
        return path

    def _refined(self, model: R2O, epoch: int, c4: Tensor | None) -> np.ndarray:
        num_clusters = self._settings.num_clusters(epoch)
        uniforms = seeding_uniforms(num_clusters, seed=self._settings.seed, step=0, first_group=0, num_groups=1)
        superpixels = torch.from_numpy(self._superpixels_of(epoch)).to(self._device)
        return model.refine(self._images, superpixels, uniforms.to(self._device), c4=c4).cpu().numpy()

    def _followed(self, folder: Path, refined_maps: Refined, *, step: int, epoch: int) -> Frame:
        """The frame of the shown images, in the colours of the panel before."""
        count, end = len(self._tiles), self._settings.epochs - 1
        num_clusters = self._settings.num_clusters(epoch), self._settings.num_clusters(end)
        masks = Refined(*(maps[:count] for maps in refined_maps))
        if before := read_frames(folder, until=step - 1, images=count, most=1):
            masks = Refined(*(follow(now, former) for now, former in zip(masks, before[-1].masks, strict=True)))
        if num_clusters[0] == num_clusters[1]:
            masks = masks._replace(at_epoch=masks.at_end)
        return Frame(step, num_clusters, masks)

    def _frames(self, folder: Path, step: int, *, most: int) -> list[Frame]:
        return read_frames(folder, until=step, images=len(self._tiles), most=most)

    def _superpixels_of(self, epoch: int) -> np.ndarray:
        return self._superpixels[self._settings.superpixel_map(epoch)]


def _tile(image: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((side, side)))


def _readable(
    reader: ShardReader, sample_id: int, settings: PretrainSettings
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Image and label maps of a sample or, where it is damaged and that is to be skipped, of the next whole one."""
    manifest, size = reader.manifest, settings.run.panel_image_size or settings.data.image_size
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
