"""Features of any images by any weights: `python -m train.evals.frozen.features --weights W --data FOLDER --out DIR …`.

Writes OUT/c4.npy and OUT/c5.npy (n, h, w, c), OUT/pooled.npy (n, d), OUT/keys.json (row → name of the image) and
OUT/features.json (what they are). Rows are in the order of the keys. Under torchrun, ranks share the images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.artifacts.run_files import KEYS_NAME
from pipeline.foundation.errors import InputError, exit_code_of, os_errors_named
from pipeline.foundation.files import write_atomic
from pipeline.foundation.locks import only_holder
from pipeline.foundation.signals import stop_signals_raise
from train.config.evals import load_evaluation_settings
from train.config.frozen import EvalFrozenSettings
from train.distributed.collectives import agreed, from_main
from train.distributed.environment import adopt_ranks
from train.distributed.world import World, world_from_environment
from train.evals.datasets.annotated import DataSet, ImageList
from train.evals.datasets.open import open_dataset
from train.evals.frozen.extraction.arrays import FEATURES_NAME, PASS_NAME, fingerprint_at
from train.evals.frozen.extraction.extract import ArrayName, FeaturePass, extract
from train.evals.frozen.extraction.folder import FolderImages
from train.evals.frozen.scoring.evaluation import ARRAYS
from train.evals.frozen.scoring.subjects import named_subjects
from train.out_of_memory import alone_without_memory

LOCK_NAME = ".lock"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evals.frozen.features", description=__doc__)
    parser.add_argument("--weights", required=True, help="a file of weights, the folder of a run, random, or random-bn")
    parser.add_argument("--data", type=Path, required=True, help="folder of images, with any folders below it")
    parser.add_argument("--list", choices=("train", "val"), help="of a folder of annotated images, this part alone")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--format", default="auto", help="whose names the weights have")
    parser.add_argument("--backbone", help="of random weights; of a file, the one that it must hold")
    parser.add_argument("--part", choices=("online", "target"), default="online", help="which of a file's networks")
    parser.add_argument("--size", type=int, default=224, help="pixels that images are resized to, both ways")
    parser.add_argument("--levels", default=",".join(ARRAYS), help="which arrays, with commas between")
    parser.add_argument("--config", type=Path, help="YAML with a section eval_frozen")
    parser.add_argument("--set", action="append", default=[], metavar="eval_frozen.key=value", help="override one")
    arguments = parser.parse_args(argv)
    settings = load_evaluation_settings(EvalFrozenSettings, arguments.config, arguments.set)
    adopt_ranks()
    with stop_signals_raise(), world_from_environment() as world, alone_without_memory(world):
        _write(arguments, settings, world)
    return 0


def _write(arguments: argparse.Namespace, settings: EvalFrozenSettings, world: World) -> None:
    arrays, out = _arrays(arguments.levels), arguments.out
    (subject,) = named_subjects(
        arguments.weights,
        format=arguments.format,
        backbone=arguments.backbone,
        part=arguments.part,
        checkpoint=None,
    )
    images = agreed(lambda: _images_of(arguments, settings), world)
    data = DataSet(layout="images", root=arguments.data, classes=(), background=None, has=frozenset(), val=images)
    features = settings.features
    task = FeaturePass(
        label=f"{arguments.data.name} by {subject.label}",
        images=images,
        weights=subject.identity(data, features, seed=0),
        backbone=subject.backbone,
        size=arguments.size,
        dilate_c5=features.dilate_c5,
        batch_size=features.batch_size,
        dtype=features.dtype,
    )
    with os_errors_named(out), ExitStack() as held:
        from_main(lambda: _take(out, task, held), world)
        files = extract(
            task,
            out,
            arrays=arrays,
            load_model=lambda: subject.build(data, features, seed=0, size=task.size, device=world.device),
            world=world,
        )
        if world.is_main:
            write_atomic(out / KEYS_NAME, json.dumps(list(images.names), ensure_ascii=False, indent=0) + "\n")
            for name in arrays:
                print(f"{files.path(name)}: {' × '.join(map(str, files.open(name).shape))}")
            print(f"{out / KEYS_NAME}: the image of each row")


def _arrays(text: str) -> tuple[ArrayName, ...]:
    """Names of arrays. Raises InputError for one that there is not."""
    for name in text.split(","):
        if name not in ARRAYS:
            raise InputError(f"--levels: no array {name!r}; there are {', '.join(ARRAYS)}")
    return tuple(name for name in ARRAYS if name in text.split(","))


def _images_of(arguments: argparse.Namespace, settings: EvalFrozenSettings) -> ImageList:
    if arguments.list is None:
        return FolderImages(arguments.data)
    data = open_dataset(arguments.data, settings.data, needs=frozenset())
    images = data.val if arguments.list == "val" else data.train
    if images is None:
        raise InputError(f"{arguments.data}: no part train; give --list val, or none for every image below it")
    return images


def _take(out: Path, task: FeaturePass, held: ExitStack) -> str:
    """Hold OUT against other processes; gives "". Raises InputError where it has other features, or other things."""
    if out.is_dir() and any(out.iterdir()) and not any((out / n).is_file() for n in (FEATURES_NAME, PASS_NAME)):
        others = [path.name for path in out.iterdir() if path.name != LOCK_NAME]
        if others:
            raise InputError(f"{out} holds {others[0]}, which is not of features; choose another --out")
    held.enter_context(only_holder(out / LOCK_NAME, otherwise=f"another process writes to {out}; wait for it"))
    for name in (FEATURES_NAME, PASS_NAME):
        found = fingerprint_at(out / name)
        if found not in (None, task.fingerprint):
            raise InputError(f"{out} holds features of other images, weights or settings; choose another --out")
    return ""


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
