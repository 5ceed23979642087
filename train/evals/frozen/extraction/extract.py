"""One pass over the images of a list: C4, C5 and the pooled vector of each, kept on disk."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.foundation.errors import InputError, os_errors_named
from pipeline.foundation.progress import Progress, say
from train.distributed.collectives import agreed, from_main
from train.distributed.world import World
from train.evals.datasets.annotated import ImageList
from train.evals.frozen.extraction.arrays import PassFiles, batches_of
from train.evals.frozen.extraction.npy import ArraySpec
from train.evals.frozen.extraction.read_ahead import read_batches
from train.models.frozen import FrozenFeatures, FrozenModel
from train.out_of_memory import memory_errors_named

ArrayName = Literal["c4", "c5", "pooled"]
NOTE_SECONDS = 10.0  # so much work is lost at most where a pass is killed


@dataclass(frozen=True, kw_only=True)
class FeaturePass:
    """Which images, at which size, by which weights.

    Attributes:
        label: for people.
        weights: what tells these weights from others, as plain JSON values.
        dtype: of the cells; the pooled vectors are float32.
    """

    label: str
    images: ImageList
    weights: Mapping[str, Any]
    backbone: str
    size: int
    dilate_c5: bool
    batch_size: int
    dtype: Literal["float16", "float32"]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the values. The batch size enters, as kernels may sum another way for another one."""
        return {
            "weights": dict(self.weights),
            "backbone": self.backbone,
            "images": {"digest": self.images.image_digest, "count": len(self.images.names)},
            "size": self.size,
            "dilate_c5": self.dilate_c5,
            "batch_size": self.batch_size,
            "dtype": self.dtype,
            "resize": "bicubic, antialiased, aspect not kept",
            "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__, "numpy": np.__version__},
        }

    @property
    def fingerprint(self) -> str:
        """The hash of `identity`."""
        return fingerprint(**self.identity)

    def files(self, folder: Path) -> PassFiles:
        """Its files, in a folder that holds nothing else of this kind."""
        batches = batches_of(len(self.images.names), self.batch_size)
        return PassFiles(folder=folder, fingerprint=self.fingerprint, identity=self.identity, batches=batches)


def extract(
    task: FeaturePass,
    folder: Path,
    *,
    arrays: Sequence[ArrayName],
    load_model: Callable[[], FrozenModel],
    world: World,
    note_seconds: float = NOTE_SECONDS,
) -> PassFiles:
    """Have the named arrays on disk: as an earlier call left them, else computed by all ranks together.

    Every rank calls this with the same arguments. Batches are whole and the same for any number of ranks.

    Args:
        folder: of this pass alone, shared by all ranks.
        load_model: called where something is to be computed.
        note_seconds: how often a rank notes what it has done, in seconds.
    Raises:
        InputError: an image has changed, a value has no float16, weights give no finite values, the disk is full.
    """
    files = task.files(folder)
    there = from_main(lambda: json.dumps(sorted(files.finished())), world)
    missing = [name for name in arrays if name not in json.loads(there)]
    if not missing:
        return files
    with _memory_named(task, world):
        model = load_model()
        specs = specs_of(task, model, missing)

    def prepare() -> str:
        left = files.prepare(specs)
        _say_what_comes(task, files, specs, left=len(left))
        return json.dumps(left)

    with os_errors_named(folder):
        left = json.loads(from_main(lambda: _with_room(prepare, folder, specs), world))
        mine = left[world.rank :: world.size]

        def compute() -> None:
            with _memory_named(task, world):
                _compute(task, files, model, mine, specs, note_seconds, world)

        agreed(compute, world)
        from_main(lambda: files.finish(specs), world)
    return files


def specs_of(task: FeaturePass, model: FrozenModel, arrays: Sequence[ArrayName]) -> dict[str, ArraySpec]:
    """Shapes and types of a pass's arrays, by a forward pass of one black image."""
    device = next(model.parameters()).device
    found = _rows_of(model(torch.zeros(1, 3, task.size, task.size, dtype=torch.uint8, device=device)))
    count = len(task.images.names)
    return {
        name: ArraySpec(
            shape=(count, *found[name].shape[1:]), dtype="float32" if name == "pooled" else task.dtype
        )
        for name in arrays
    }  # fmt: skip


def _rows_of(features: FrozenFeatures) -> dict[str, Tensor]:
    """By array, the image first and channels last."""
    return {
        "c4": features.c4.permute(0, 2, 3, 1),
        "c5": features.c5.permute(0, 2, 3, 1),
        "pooled": features.pooled.float(),
    }


def _memory_named(task: FeaturePass, world: World) -> AbstractContextManager[None]:
    turn = (
        f"lower eval_frozen.features.batch_size, now {task.batch_size}, or the size of the images, now {task.size} "
        "(eval_frozen.<protocol>.size; of `features`, --size)"
    )
    return memory_errors_named(f"features, {task.label}", lambda lack: turn, world.device)


def _compute(
    task: FeaturePass,
    files: PassFiles,
    model: FrozenModel,
    mine: Sequence[int],
    specs: Mapping[str, ArraySpec],
    note_seconds: float,
    world: World,
) -> None:
    """This rank's batches."""
    device = next(model.parameters()).device
    total = sum(len(files.batches[batch]) for batch in mine)
    progress = Progress(task.label, total, "images") if world.is_main and total else None
    noted = time.monotonic()
    batches = read_batches(task.images, [files.batches[batch] for batch in mine], size=task.size)
    for batch, images in zip(mine, batches, strict=True):
        rows = _rows_of(model(images.to(device)))
        files.write(batch, {name: _on_host(rows[name], spec.dtype, name) for name, spec in specs.items()})
        if time.monotonic() - noted >= note_seconds:
            files.note(world.rank)
            noted = time.monotonic()
        if progress:
            progress.advance(len(images))
    files.note(world.rank)


def _on_host(values: Tensor, dtype: str, name: str) -> np.ndarray:
    """As a NumPy array of a type. Raises InputError where the type cannot hold a value, or one is not finite."""
    converted = values.to(getattr(torch, dtype))
    if not bool(torch.isfinite(converted).all()):
        if bool(torch.isfinite(values).all()):
            raise InputError(
                f"{name} reaches {float(values.abs().max()):.3g}, which float16 cannot hold; give "
                "--set eval_frozen.features.dtype=float32"
            )
        raise InputError(f"{name} holds values that are not finite; these weights cannot be scored")
    host: np.ndarray = converted.contiguous().cpu().numpy()
    return host


def _with_room(prepare: Callable[[], str], folder: Path, specs: Mapping[str, ArraySpec]) -> str:
    """What `prepare` gives. Raises InputError where the disk is too small, and says by how much."""
    need = sum(spec.num_bytes for spec in specs.values())
    try:
        return prepare()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    free = shutil.disk_usage(folder).free
    raise InputError(
        f"{folder}: no room for features: {format_bytes(need)} are needed, {format_bytes(free)} are free; make room, "
        "or give --features on another disk"
    )


def _say_what_comes(task: FeaturePass, files: PassFiles, specs: Mapping[str, ArraySpec], *, left: int) -> None:
    shapes = ", ".join(f"{name} {' × '.join(map(str, spec.shape[1:]))}" for name, spec in specs.items())
    need = format_bytes(sum(spec.num_bytes for spec in specs.values()))
    done = len(files.batches) - left
    begun = f"; {done} of {len(files.batches)} batches are done" if done else ""
    say(f"{task.label}: {len(task.images.names)} images, {shapes} ({task.dtype}), {need} in {files.folder}{begun}")


def format_bytes(count: float) -> str:
    """Bytes as people read them: 71 MB, 4.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, {"bytes": "kB", "kB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
