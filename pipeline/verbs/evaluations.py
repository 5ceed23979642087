"""The verbs of evaluations: one for each fine-tuning, `eval-frozen` and its protocols, `features`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

from pipeline import stages
from pipeline.launchers import local
from pipeline.stages import EVALUATIONS, Evaluation
from pipeline.verbs.arguments import Parser, Verbs, count, options_of, path, recipe_of
from train.config.frozen import FROZEN_PROTOCOLS

WEIGHTS = "a file of anybody's weights, the folder of a run, random, or random-bn"
LEVELS = ("c4", "c5", "pooled")


def add_verbs(verbs: Verbs[Parser], of_stage: Parser) -> None:
    """Add the verbs; `of_stage` has the options that most of them take."""
    for evaluation in EVALUATIONS.values():
        parser = verbs.add_parser(evaluation.verb, parents=[of_stage], help=evaluation.help)
        parser.add_argument("--run", type=path, required=True, help="folder of a finished pretraining run")
        option, metavar = f"--{evaluation.name}", evaluation.name.upper()
        parser.add_argument(option, type=path, required=True, dest="data", metavar=metavar, help=evaluation.data)
        parser.set_defaults(verb=partial(_evaluate, evaluation))
    of_weights = _with_weights()
    frozen = verbs.add_parser(
        "eval-frozen",
        parents=[of_stage, of_weights],
        help="score frozen features by all that the data allow",
    )
    _add_results(frozen)
    frozen.add_argument(
        "--protocols", help=f"names with commas between, of {', '.join(FROZEN_PROTOCOLS)}; else eval_frozen.protocols"
    )
    frozen.set_defaults(verb=_evaluate_frozen)
    for protocol in FROZEN_PROTOCOLS.values():
        help = f"score frozen features: {protocol.title}"
        one = verbs.add_parser(f"eval-{protocol.name}", parents=[of_stage, of_weights], help=help)
        _add_results(one)
        one.set_defaults(verb=_evaluate_frozen, protocols=protocol.name)
    features = verbs.add_parser("features", parents=[of_stage, of_weights], help="write features as .npy, and keys")
    features.add_argument("--data", type=path, required=True, help="folder of images, with any folders below it")
    features.add_argument("--list", choices=("train", "val"), help="of a folder of annotated images, this part alone")
    features.add_argument("--out", type=path, required=True, help="folder to write")
    features.add_argument("--size", type=count, help="pixels that images are resized to, both ways (224)")
    features.add_argument("--levels", nargs="+", choices=LEVELS, help="which arrays (all)")
    features.set_defaults(verb=_write_features)


def _with_weights() -> Parser:
    """Parent of every verb that takes weights of anybody's."""
    parser = Parser(add_help=False)
    parser.add_argument("--weights", required=True, help=WEIGHTS)
    parser.add_argument("--format", help="whose names the weights have (auto)")
    parser.add_argument("--backbone", help="of random weights; of a file, the one that it must hold")
    parser.add_argument("--part", choices=("online", "target"), help="which of a file's networks (online)")
    parser.add_argument("--nproc", type=count, default=1, help="processes on this machine (1)")
    return parser


def _add_results(parser: Parser) -> None:
    parser.add_argument("--data", type=path, nargs="+", action="extend", required=True, help="annotated images")
    parser.add_argument("--checkpoint", help="a checkpoint of the run in place of its backbone, or all of them")
    parser.add_argument("--out", type=path, help="folder of results; RUN/eval-frozen, or runs/eval-frozen/<weights>")
    parser.add_argument("--features", type=path, help="folder of features (OUT/features)")
    parser.add_argument("--drop-features", action="store_true", help="remove features at the end")


def _evaluate(evaluation: Evaluation, arguments: argparse.Namespace) -> int:
    stage = stages.evaluation_stage(
        evaluation,
        recipe_of(arguments).evaluations[evaluation.name],
        run=arguments.run,
        data=arguments.data,
        options=options_of(arguments),
    )
    return local.start(stage)


def _evaluate_frozen(arguments: argparse.Namespace) -> int:
    given = ("format", "backbone", "part", "checkpoint", "protocols", "out", "features")
    options = [*_given(arguments, *given), *(["--drop-features"] if arguments.drop_features else [])]
    stage = stages.frozen_stage(
        recipe_of(arguments).frozen,
        weights=arguments.weights,
        data=arguments.data,
        out=arguments.out,
        options=(*options, *options_of(arguments)),
        nproc=arguments.nproc,
    )
    return local.start(stage)


def _write_features(arguments: argparse.Namespace) -> int:
    levels = [f"--levels={','.join(arguments.levels)}"] if arguments.levels else []
    options = [*_given(arguments, "format", "backbone", "part", "list", "size"), *levels]
    stage = stages.features_stage(
        recipe_of(arguments).frozen,
        weights=arguments.weights,
        data=arguments.data,
        out=arguments.out,
        options=(*options, *options_of(arguments)),
        nproc=arguments.nproc,
    )
    return local.start(stage)


def _given(arguments: argparse.Namespace, *names: str) -> Iterator[str]:
    """Options that the command line has, as the stage's command takes them."""
    for name in names:
        if (value := getattr(arguments, name)) is not None:
            yield f"--{name}={value}"
