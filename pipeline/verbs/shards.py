"""The verbs of preprocessing: scenes, shards, verify, preview."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import stages
from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.folders import is_url, local_path
from pipeline.launchers import local
from pipeline.verbs.arguments import Parser, Verbs, count, options_of, path, place, recipe_of


def add_verbs(verbs: Verbs[Parser], of_stage: Parser) -> None:
    """Add the verbs; `of_stage` has the options that each of them takes."""
    scenes = verbs.add_parser("scenes", parents=[of_stage], help="generate the embedded scenes")
    scenes.add_argument("--out", type=path, required=True, help="folder to make")
    scenes.set_defaults(verb=_scenes)
    shards = verbs.add_parser("shards", parents=[of_stage], help="images → superpixel shards")
    shards.add_argument("--images", type=place, required=True, help="where the images are: a path or a URL")
    shards.add_argument("--shards", type=place, required=True, help="folder to make or to complete: a path or a URL")
    shards.add_argument("--overwrite", action="store_true", help="replace shards of other settings or images")
    shards.add_argument("--dry-run", action="store_true", help="say how much it will be, and make nothing")
    shards.add_argument("--sheet", type=path, help="contact sheet to draw at the end (SHARDS-superpixels.png)")
    shards.add_argument("--runtime-env", type=path, help="YAML file: Ray's runtime_env for a cluster's workers")
    shards.set_defaults(verb=_shards)
    verify = verbs.add_parser("verify", parents=[of_stage], help="check shards: checksums, counts, label maps")
    verify.add_argument("--shards", type=place, required=True, help="finished shards")
    verify.add_argument("--workers", type=count, help="processes (all cores)")
    verify.add_argument("--deep", action="store_true", help="decode every image too")
    verify.add_argument("--repair", action="store_true", help="make the damaged shards again, from --images")
    verify.add_argument("--images", type=place, help="what the shards were made from; alone: compare with them")
    verify.set_defaults(verb=_verify)
    preview = verbs.add_parser("preview", parents=[of_stage], help="contact sheet of superpixels")
    preview.add_argument("--shards", type=place, required=True, help="finished shards")
    preview.add_argument("--shard", action="append", default=[], help="name or number of a shard to draw from")
    preview.add_argument("--key", action="append", default=[], help="key of a sample to draw")
    preview.add_argument("--map", help="further map to draw")
    preview.add_argument("--out", type=path, required=True, help="PNG to write")
    preview.add_argument("--count", type=count, help="number of images (workflow.preview_images)")
    preview.set_defaults(verb=_preview)


def _scenes(arguments: argparse.Namespace) -> int:
    settings = recipe_of(arguments).scenes
    return local.start(stages.scenes_stage(settings, out=arguments.out, options=options_of(arguments)))


def _shards(arguments: argparse.Namespace) -> int:
    shards = arguments.shards
    sheet = arguments.sheet or (Path(shards.rstrip("/").rpartition("/")[2]) if is_url(shards) else local_path(shards))
    options = [*options_of(arguments), f"--sheet={arguments.sheet or f'{sheet}-superpixels.png'}"]
    options += [f"--runtime-env={arguments.runtime_env}"] if arguments.runtime_env else []
    options += [flag for flag in ("--overwrite", "--dry-run") if getattr(arguments, flag[2:].replace("-", "_"))]
    settings = recipe_of(arguments).shards
    return local.start(stages.shards_stage(settings, images=arguments.images, shards=shards, options=tuple(options)))


def _verify(arguments: argparse.Namespace) -> int:
    Manifest.read(arguments.shards)
    options = [f"--images={arguments.images}"] if arguments.images else []
    options += [f"--workers={arguments.workers}"] if arguments.workers else []
    options += [flag for flag in ("--deep", "--repair") if getattr(arguments, flag[2:])]
    return local.start(stages.verify_stage(shards=arguments.shards, options=(*options_of(arguments), *options)))


def _preview(arguments: argparse.Namespace) -> int:
    Manifest.read(arguments.shards)
    settings = recipe_of(arguments).workflow
    chosen = [f"--shard={name}" for name in arguments.shard] + [f"--key={key}" for key in arguments.key]
    chosen += [f"--map={arguments.map}"] if arguments.map else []
    images = arguments.count or settings.preview_images
    stage = stages.preview_stage(shards=arguments.shards, out=arguments.out, count=images, options=tuple(chosen))
    return local.start(stage)
