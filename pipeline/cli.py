"""The `r2o` command: one verb per stage, and `run` and `status` over the whole graph."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pipeline import stages
from pipeline.artifacts.manifest import Manifest
from pipeline.config import Recipe, code_version, load_recipe
from pipeline.estimates.pretrain import check_pretrain, describe
from pipeline.foundation.errors import InputError, exit_code_of
from pipeline.foundation.folders import is_url, local_path
from pipeline.foundation.settings import dump_settings
from pipeline.graph import run_stages, verdicts
from pipeline.launchers import local
from train.config.batches import plan_batches

EXPORT_FORMATS = ("torchvision", "timm", "detectron2", "mmseg")  # as in train.models.formats, which loads torch
OWN_IMAGES = """
Your own images, a folder of JPEGs or of class folders:
  make shards   IMAGES=<folder> SHARDS=<new folder>
  make preview  SHARDS=<folder> PNG=<new file>
  make pretrain SHARDS=<folder> RUN=<new folder> CONFIG=<config> NPROC=<processes>
  make eval-voc RUN=<folder> VOC=<VOC2012 folder>
{config} is a place to start from; its images are tiny and its epochs few."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `r2o`; gives the exit code."""
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    return arguments.verb(arguments)


def _scenes(arguments: argparse.Namespace) -> int:
    return local.start(stages.scenes_stage(_recipe(arguments), out=arguments.out, options=_options(arguments)))


def _shards(arguments: argparse.Namespace) -> int:
    shards = arguments.shards
    sheet = arguments.sheet or (Path(shards.rstrip("/").rpartition("/")[2]) if is_url(shards) else local_path(shards))
    options = [*_options(arguments), f"--sheet={arguments.sheet or f'{sheet}-superpixels.png'}"]
    options += [f"--runtime-env={arguments.runtime_env}"] if arguments.runtime_env else []
    options += [flag for flag in ("--overwrite", "--dry-run") if getattr(arguments, flag[2:].replace("-", "_"))]
    recipe = _recipe(arguments)
    return local.start(stages.shards_stage(recipe, images=arguments.images, shards=shards, options=tuple(options)))


def _verify(arguments: argparse.Namespace) -> int:
    Manifest.read(arguments.shards)
    options = [f"--images={arguments.images}"] if arguments.images else []
    options += [f"--workers={arguments.workers}"] if arguments.workers else []
    options += [flag for flag in ("--deep", "--repair") if getattr(arguments, flag[2:])]
    return local.start(stages.verify_stage(shards=arguments.shards, options=(*_options(arguments), *options)))


def _preview(arguments: argparse.Namespace) -> int:
    Manifest.read(arguments.shards)
    chosen = [f"--shard={name}" for name in arguments.shard] + [f"--key={key}" for key in arguments.key]
    chosen += [f"--map={arguments.map}"] if arguments.map else []
    stage = stages.preview_stage(
        _recipe(arguments), shards=arguments.shards, out=arguments.out, count=arguments.count, options=tuple(chosen)
    )
    return local.start(stage)


def _pretrain(arguments: argparse.Namespace) -> int:
    recipe = _recipe(arguments)
    nproc = arguments.nproc or recipe.workflow.nproc
    if arguments.dry_run:
        return _dry_run_pretrain(arguments, recipe, nproc)
    if not arguments.shards or not arguments.run or arguments.num_samples:
        raise InputError("r2o pretrain needs --shards and --run; --num-samples is for --dry-run")
    check_pretrain(recipe.pretrain, shards=arguments.shards, run=arguments.run, nproc=nproc)
    options = (*_options(arguments), *([f"--init={arguments.init}"] if arguments.init else []))
    return local.start(
        stages.pretrain_stage(recipe, shards=arguments.shards, run=arguments.run, nproc=nproc, options=options)
    )


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


def _eval_voc(arguments: argparse.Namespace) -> int:
    return local.start(
        stages.eval_voc_stage(_recipe(arguments), run=arguments.run, voc=arguments.voc, options=_options(arguments))
    )


def _workflow(arguments: argparse.Namespace) -> int:
    recipe, work = _recipe(arguments), _work(arguments)
    _check_batches(recipe)
    graph = stages.workflow(recipe, work=work, options=_options(arguments))
    if arguments.dry_run:
        return _print_plan(graph, work)
    shards, run, nproc = work / "shards", work / "pretrain", recipe.workflow.nproc
    checks = {"pretrain": lambda: check_pretrain(recipe.pretrain, shards=shards, run=run, nproc=nproc)}
    if code := run_stages(graph, work=work, version=code_version(), checks=checks):
        return code
    print("\nWhere things lie:")
    for what, path in (shown for stage in graph for shown in stage.shows):
        print(f"  {what:<30} {path}")
    if recipe.workflow.images is None:
        print(OWN_IMAGES.format(config=arguments.config))
    return 0


def _check_batches(recipe: Recipe) -> None:
    """What of the batch arithmetic is known before there are shards. Raises InputError."""
    batch, nproc = recipe.pretrain.global_batch_size, recipe.workflow.nproc
    num_samples = batch if recipe.workflow.images else recipe.scenes.pretrain_images
    plan_batches(recipe.pretrain.fitted_to(nproc), num_samples=num_samples, num_ranks=nproc)


def _print_plan(graph: Sequence[stages.Stage], work: Path) -> int:
    found = verdicts(graph, work=work, version=code_version())
    for stage in graph:
        skipped = found[stage.name].action == "skip"
        print(f"{stage.name:<9} {found[stage.name]}{', would be skipped' if skipped else ''}")
        if not skipped:
            print(f"{'':<9} {shlex.join(local.command_of(stage))}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    work = _work(arguments)
    graph = stages.workflow(_recipe(arguments), work=work)
    found = verdicts(graph, work=work, version=code_version())
    for stage in graph:
        print(f"{stage.name:<9} {found[stage.name]}  {stage.output}")
    return 0


def _recipe(arguments: argparse.Namespace) -> Recipe:
    return load_recipe(arguments.config, arguments.overrides)


def _options(arguments: argparse.Namespace) -> tuple[str, ...]:
    return stages.config_arguments(arguments.config, arguments.overrides)


def _work(arguments: argparse.Namespace) -> Path:
    settings = _recipe(arguments).workflow
    return arguments.work or settings.work or Path("runs") / arguments.config.stem


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; `{self.prog} --help` tells how")


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _place(text: str) -> str:
    """A path or a URL."""
    return text if is_url(text) else str(_path(text))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _parser() -> _Parser:
    parser = _Parser(prog="r2o", description="Region-to-Object representation learning, stage by stage.")
    parser.add_argument("--version", action="version", version=f"r2o {code_version()}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    settings = _Parser(add_help=False)
    settings.add_argument(
        "--set", action="extend", nargs="+", default=[], dest="overrides", metavar="SECTION.KEY=VALUE"
    )
    of_stage = _Parser(add_help=False, parents=[settings])
    of_stage.add_argument("--config", type=_path, help="YAML file of settings; see configs/")
    _add_preprocessing(verbs, of_stage)
    _add_training(verbs, of_stage)
    of_graph = _Parser(add_help=False, parents=[settings])
    of_graph.add_argument("config", type=_path, help="YAML file of settings; see configs/")
    of_graph.add_argument("--work", type=_path, help="folder of all results (workflow.work)")
    run = verbs.add_parser("run", parents=[of_graph], help="every stage that is not finished and unchanged")
    run.add_argument("--dry-run", action="store_true", help="print what would be run and end")
    run.set_defaults(verb=_workflow)
    status = verbs.add_parser("status", parents=[of_graph], help="what is finished, changed or to do")
    status.set_defaults(verb=_status)
    return parser


def _add_preprocessing(verbs: argparse._SubParsersAction[_Parser], of_stage: _Parser) -> None:
    scenes = verbs.add_parser("scenes", parents=[of_stage], help="generate the embedded scenes")
    scenes.add_argument("--out", type=_path, required=True, help="folder to make")
    scenes.set_defaults(verb=_scenes)
    shards = verbs.add_parser("shards", parents=[of_stage], help="images → superpixel shards")
    shards.add_argument("--images", type=_place, required=True, help="where the images are: a path or a URL")
    shards.add_argument("--shards", type=_place, required=True, help="folder to make or to complete: a path or a URL")
    shards.add_argument("--overwrite", action="store_true", help="replace shards of other settings or images")
    shards.add_argument("--dry-run", action="store_true", help="say how much it will be, and make nothing")
    shards.add_argument("--sheet", type=_path, help="contact sheet to draw at the end (SHARDS-superpixels.png)")
    shards.add_argument("--runtime-env", type=_path, help="YAML file: Ray's runtime_env for a cluster's workers")
    shards.set_defaults(verb=_shards)
    verify = verbs.add_parser("verify", parents=[of_stage], help="check shards: checksums, counts, label maps")
    verify.add_argument("--shards", type=_place, required=True, help="finished shards")
    verify.add_argument("--workers", type=_count, help="processes (all cores)")
    verify.add_argument("--deep", action="store_true", help="decode every image too")
    verify.add_argument("--repair", action="store_true", help="make the damaged shards again, from --images")
    verify.add_argument("--images", type=_place, help="what the shards were made from")
    verify.set_defaults(verb=_verify)
    preview = verbs.add_parser("preview", parents=[of_stage], help="contact sheet of superpixels")
    preview.add_argument("--shards", type=_place, required=True, help="finished shards")
    preview.add_argument("--shard", action="append", default=[], help="name or number of a shard to draw from")
    preview.add_argument("--key", action="append", default=[], help="key of a sample to draw")
    preview.add_argument("--map", help="further map to draw")
    preview.add_argument("--out", type=_path, required=True, help="PNG to write")
    preview.add_argument("--count", type=_count, help="number of images (workflow.preview_images)")
    preview.set_defaults(verb=_preview)


def _add_training(verbs: argparse._SubParsersAction[_Parser], of_stage: _Parser) -> None:
    pretrain = verbs.add_parser("pretrain", parents=[of_stage], help="shards → pretrained backbone")
    pretrain.add_argument("--shards", type=_place, help="finished shards: a path or a URL")
    pretrain.add_argument("--run", type=_path, help="folder of the run; a stopped one goes on")
    pretrain.add_argument("--nproc", type=_count, help="processes on this machine (workflow.nproc)")
    pretrain.add_argument("--dry-run", action="store_true", help="print the resolved run and its cost and end")
    pretrain.add_argument("--num-samples", type=_count, help="with --dry-run: plan for so many, without shards")
    pretrain.set_defaults(verb=_pretrain)
    pretrain.add_argument("--init", type=_path, help="weights to begin with: .pth or .safetensors of any export format")
    export = verbs.add_parser("export", help="backbone → a file that another library loads, with a model card")
    export.add_argument("--run", type=_path, required=True, help="folder of a run")
    export.add_argument("--format", choices=EXPORT_FORMATS, default="torchvision", help="whose names (torchvision)")
    export.add_argument("--out", type=_path, required=True, help="file to write: .pth, .pt or .safetensors")
    export.add_argument("--checkpoint", type=_path, help="take the weights of this checkpoint of the run")
    export.add_argument("--heads", action="store_true", help="also write projector and predictor")
    export.set_defaults(verb=_export)
    eval_voc = verbs.add_parser("eval-voc", parents=[of_stage], help="fine-tune an FCN, score mIoU")
    eval_voc.add_argument("--run", type=_path, required=True, help="folder of a finished pretraining run")
    eval_voc.add_argument("--voc", type=_path, required=True, help="folder of VOC2012's layout")
    eval_voc.set_defaults(verb=_eval_voc)


if __name__ == "__main__":
    sys.exit(main())
