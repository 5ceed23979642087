"""The verbs of pretraining and of what comes of it: pretrain, export."""

from __future__ import annotations

import argparse

from pipeline import stages
from pipeline.artifacts.manifest import Manifest
from pipeline.config import Recipe
from pipeline.estimates.pretrain import check_pretrain, describe
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings
from pipeline.launchers import local
from pipeline.verbs.arguments import Parser, Verbs, count, options_of, path, place, recipe_of
from train.config.batches import plan_batches

EXPORT_FORMATS = ("torchvision", "timm", "detectron2", "mmseg")  # as in train.models.formats, which loads torch


def add_verbs(verbs: Verbs[Parser], of_stage: Parser) -> None:
    """Add the verbs; `of_stage` has the options that most of them take."""
    pretrain = verbs.add_parser("pretrain", parents=[of_stage], help="shards → pretrained backbone")
    pretrain.add_argument("--shards", type=place, help="finished shards: a path or a URL")
    pretrain.add_argument("--run", type=path, help="folder of the run; a stopped one goes on")
    pretrain.add_argument("--nproc", type=count, help="processes on this machine (workflow.nproc)")
    pretrain.add_argument("--dry-run", action="store_true", help="print the resolved run and its cost and end")
    pretrain.add_argument("--num-samples", type=count, help="with --dry-run: plan for so many, without shards")
    pretrain.set_defaults(verb=_pretrain)
    pretrain.add_argument("--init", type=path, help="weights to begin with, of any project in docs/weights.md")
    export = verbs.add_parser("export", help="backbone → a file that another library loads, with a model card")
    export.add_argument("--run", type=path, required=True, help="folder of a run")
    export.add_argument("--format", choices=EXPORT_FORMATS, default="torchvision", help="whose names (torchvision)")
    export.add_argument("--out", type=path, required=True, help="file to write: .pth, .pt or .safetensors")
    export.add_argument("--checkpoint", type=path, help="take the weights of this checkpoint of the run")
    export.add_argument("--heads", action="store_true", help="also write projector and predictor")
    export.set_defaults(verb=_export)


def _pretrain(arguments: argparse.Namespace) -> int:
    recipe = recipe_of(arguments)
    nproc = arguments.nproc or recipe.workflow.nproc
    if arguments.dry_run:
        return _dry_run_pretrain(arguments, recipe, nproc)
    if not arguments.shards or not arguments.run or arguments.num_samples:
        raise InputError("r2o pretrain needs --shards and --run; --num-samples is for --dry-run")
    check_pretrain(recipe.pretrain, shards=arguments.shards, run=arguments.run, nproc=nproc)
    options = (*options_of(arguments), *([f"--init={arguments.init}"] if arguments.init else []))
    stage = stages.pretrain_stage(
        recipe.pretrain, shards=arguments.shards, run=arguments.run, nproc=nproc, options=options
    )
    return local.start(stage)


def _dry_run_pretrain(arguments: argparse.Namespace, recipe: Recipe, nproc: int) -> int:
    if bool(arguments.shards) == bool(arguments.num_samples):
        raise InputError("r2o pretrain --dry-run needs the number of samples: either --shards or --num-samples")
    num_samples = arguments.num_samples or Manifest.read(arguments.shards).stored
    settings = recipe.pretrain.fitted_to(nproc)
    plan = plan_batches(settings, num_samples=num_samples, num_ranks=nproc)
    print(describe(settings, plan, run=arguments.run), dump_settings(pretrain=settings), sep="\n\n", end="")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    options = [f"--format={arguments.format}", *(["--heads"] if arguments.heads else [])]
    options += [f"--checkpoint={arguments.checkpoint}"] if arguments.checkpoint else []
    return local.start(stages.export_stage(run=arguments.run, out=arguments.out, options=tuple(options)))
