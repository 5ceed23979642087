"""The verbs of the whole graph: run, status."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.run_files import RESULTS_NAME, SUMMARY_NAME
from pipeline.config import Recipe, code_version
from pipeline.estimates.pretrain import check_pretrain
from pipeline.graph import run_stages, verdicts
from pipeline.launchers import local
from pipeline.stages import Stage
from pipeline.verbs.arguments import Parser, Verbs, options_of, path, recipe_of, with_settings
from pipeline.verbs.results import RESAMPLES
from pipeline.workflow import workflow
from train.config.batches import plan_batches

OWN_IMAGES = """
Your own images, a folder of JPEGs or of class folders:
  make shards   IMAGES=<folder> SHARDS=<new folder>
  make preview  SHARDS=<folder> PNG=<new file>
  make pretrain SHARDS=<folder> RUN=<new folder> CONFIG=<config> NPROC=<processes>
  make eval-voc RUN=<folder> VOC=<VOC2012 folder>
{config} is a place to start from; its images are tiny and its epochs few."""


def add_verbs(verbs: Verbs[Parser]) -> None:
    """Add the verbs."""
    of_graph = Parser(add_help=False, parents=[with_settings()])
    of_graph.add_argument("config", type=path, help="YAML file of settings; see configs/")
    of_graph.add_argument("--work", type=path, help="folder of all results (workflow.work)")
    run = verbs.add_parser("run", parents=[of_graph], help="every stage that is not finished and unchanged")
    run.add_argument("--dry-run", action="store_true", help="print what would be run and end")
    run.set_defaults(verb=_workflow)
    status = verbs.add_parser("status", parents=[of_graph], help="what is finished, changed or to do")
    status.set_defaults(verb=_status)


def _workflow(arguments: argparse.Namespace) -> int:
    recipe, work = recipe_of(arguments), _work(arguments)
    _check_batches(recipe)
    graph = workflow(recipe, work=work, options=options_of(arguments))
    if arguments.dry_run:
        return _print_plan(graph, work)
    shards, run, nproc = work / "shards", work / "pretrain", recipe.workflow.nproc
    checks = {"pretrain": lambda: check_pretrain(recipe.pretrain, shards=shards, run=run, nproc=nproc)}
    if code := run_stages(graph, work=work, version=code_version(), checks=checks):
        return code
    print("\nWhere things lie:")
    for what, where in (shown for stage in graph for shown in stage.shows):
        print(f"  {what:<30} {where}")
    if recipe.workflow.images is None:
        print(OWN_IMAGES.format(config=arguments.config))
    _print_findings(graph)
    return 0


def _print_findings(graph: Sequence[Stage]) -> None:
    """What the evaluations of the run found, where there are any."""
    from pipeline.report.report import give, run_report  # here, for it loads NumPy, which `r2o --help` does without

    markers = [stage.marker for stage in graph if stage.marker.name in (RESULTS_NAME, SUMMARY_NAME)]
    if text := run_report(markers, resamples=RESAMPLES):
        print()
        give(text, None)


def _check_batches(recipe: Recipe) -> None:
    """What of the batch arithmetic is known before there are shards. Raises InputError."""
    batch, nproc = recipe.pretrain.global_batch_size, recipe.workflow.nproc
    num_samples = batch if recipe.workflow.images else recipe.scenes.pretrain_images
    plan_batches(recipe.pretrain.fitted_to(nproc), num_samples=num_samples, num_ranks=nproc)


def _print_plan(graph: Sequence[Stage], work: Path) -> int:
    found, width = verdicts(graph, work=work, version=code_version()), _width(graph)
    for stage in graph:
        skipped = found[stage.name].action == "skip"
        print(f"{stage.name:<{width}} {found[stage.name]}{', would be skipped' if skipped else ''}")
        if not skipped:
            print(f"{'':<{width}} {shlex.join(local.command_of(stage))}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    work = _work(arguments)
    graph = workflow(recipe_of(arguments), work=work)
    found, width = verdicts(graph, work=work, version=code_version()), _width(graph)
    for stage in graph:
        print(f"{stage.name:<{width}} {found[stage.name]}  {stage.output}")
    return 0


def _width(graph: Sequence[Stage]) -> int:
    return max(len(stage.name) for stage in graph)


def _work(arguments: argparse.Namespace) -> Path:
    settings = recipe_of(arguments).workflow
    return arguments.work or settings.work or Path("runs") / arguments.config.stem
