"""What each panel showed, kept beside it, so that a mask has one colour for as long as it can be followed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int

from pipeline.foundation.files import atomic_writer, read_own
from pipeline.foundation.pictures import resize_labels
from train.evals.frozen.numerics.assignment import match_at_least_cost

T = TypeVar("T")
MOST_IDS = 1 << 16
SUFFIX = ".npz"


class Refined(NamedTuple):
    """Refined maps of the same images: at the K of the epoch, and at the K that the run ends with."""

    at_epoch: Int[np.ndarray, "n h w"]
    at_end: Int[np.ndarray, "n h w"]


class Frame(NamedTuple):
    """The masks of a panel after `step` steps; ids are colours. `num_clusters`: K of the epoch, and of the end."""

    step: int
    num_clusters: tuple[int, int]
    masks: Refined


def panel_name(step: int) -> str:
    """A panel's file name without suffix."""
    return f"step-{step:08d}"


def write_frame(folder: Path, frame: Frame) -> None:
    """Keep a frame as `step-….npz`."""
    maps = {name: labels.astype(np.uint16) for name, labels in frame.masks._asdict().items()}
    with atomic_writer(folder / f"{panel_name(frame.step)}{SUFFIX}") as file:
        np.savez(file, allow_pickle=False, step=frame.step, num_clusters=frame.num_clusters, **maps)


def read_frame(path: Path) -> Frame | None:
    """A frame as it was written; None where it is not there or not whole."""
    try:
        content = read_own(path)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if archive.testzip() is not None:  # numpy compares no checksum of what it does not read to its end
                return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            first, last = (int(number) for number in arrays["num_clusters"])
            masks = Refined(*(arrays[name].astype(np.int64) for name in Refined._fields))
            frame = Frame(int(arrays["step"]), (first, last), masks)
    except Exception:  # a damaged archive raises anything, and a picture is worth no run
        return None
    usable = all(m.ndim == 3 and m.size and m.min() >= 0 and m.max() < MOST_IDS for m in masks)
    return frame if usable and len(masks.at_epoch) == len(masks.at_end) else None


def read_frames(folder: Path, *, until: int, images: int, most: int) -> list[Frame]:
    """Up to `most` frames of steps up to `until`, as `evenly` chooses them.

    Args:
        images: frames of another number of images are left out, as damaged ones are.
    """
    names = sorted(path.name for path in folder.glob(f"step-*{SUFFIX}"))
    chosen = evenly([name for name in names if name <= f"{panel_name(until)}{SUFFIX}"], most)
    found = [read_frame(folder / name) for name in chosen]
    return [frame for frame in found if frame is not None and len(frame.masks.at_end) == images]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """Up to `most` items in their order, evenly spaced, the last included, and the first if `most` > 1."""
    places = np.linspace(len(items) - 1, 0, min(most, len(items))).round().astype(int)
    return [items[place] for place in reversed(places)]


def follow(labels: Int[np.ndarray, "n h w"], before: Int[np.ndarray, "n bh bw"]) -> Int[np.ndarray, "n h w"]:
    """Ids renamed, image by image, so that as many cells as can be keep the id that they had `before`.

    K-means numbers its clusters anew each time. A mask that continues none gets an id that `before` does not have, if
    one is left below the greatest id of either.
    """
    renamed = np.empty_like(labels)
    for image, (now, former) in enumerate(zip(labels, before, strict=True)):
        ids, place = np.unique(now, return_inverse=True)
        overlap = np.zeros((len(ids), max(int(now.max()), int(former.max())) + 1), dtype=np.int64)
        np.add.at(overlap, (place.ravel(), resize_labels(former, now.shape).ravel()), 1)
        # Total overlap counts first; then, that no mask takes the id of one that it has nothing in common with.
        cost = -overlap * (len(ids) + 1) + ((overlap == 0) & overlap.any(0))
        renamed[image] = match_at_least_cost(cost)[:, 1][place].reshape(now.shape)
    return renamed
