"""Scores frozen features: `python -m train.evals.frozen.score --weights W --data FOLDER [--protocols …] [--out DIR] …`.

Every (images, weights, protocol, seed) is scored on its own and stored at once; what is finished and unchanged is not
done again. Under torchrun, ranks share the passes over the images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.foundation.errors import exit_code_of, os_errors_named
from pipeline.foundation.progress import say
from pipeline.foundation.signals import stop_signals_raise
from train.config.evals import load_evaluation_settings
from train.config.frozen import EvalFrozenSettings
from train.distributed.collectives import agreed
from train.distributed.environment import adopt_ranks
from train.distributed.world import World, world_from_environment
from train.evals.datasets.open import open_dataset
from train.evals.frozen.scoring.evaluation import FrozenEvaluation, ImageSet
from train.evals.frozen.scoring.functions import SCORE_FUNCTIONS
from train.evals.frozen.scoring.plan import (
    check_report_names,
    check_superpixels,
    named_protocols,
    needs_of,
    plan_protocols,
)
from train.evals.frozen.scoring.run import Scoring
from train.evals.frozen.scoring.stored import FEATURES_FOLDER, REPLACED_FOLDER
from train.evals.frozen.scoring.subjects import Subject, baselines_of, default_out, named_subjects, safe_name
from train.evals.frozen.scoring.summary import draw_epochs, seconds_by_phase, summary_rows, table_of_rows, write_summary
from train.out_of_memory import alone_without_memory, memory_errors_named

# Ranks wait for the main one while it scores; one that dies is told by its connection, not by this time.
TIMEOUT_MINUTES = 7 * 24 * 60.0
# The pass over the images says its own.
WHAT_TO_TURN = (
    "lower eval_frozen.data.max_images or the protocol's size (eval_frozen.<protocol>.size), or run one protocol at a "
    "time (--protocols); what is finished is not done again"
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evals.frozen.score", description=__doc__)
    parser.add_argument("--weights", required=True, help="a file of weights, the folder of a run, random, or random-bn")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder of annotated images")
    parser.add_argument("--format", default="auto", help="whose names the weights have")
    parser.add_argument("--backbone", help="of random weights; of a file, the one that it must hold")
    parser.add_argument("--part", choices=("online", "target"), default="online", help="which of a file's networks")
    parser.add_argument("--checkpoint", help="a checkpoint of the run in place of its backbone, or all of them")
    parser.add_argument("--protocols", help="names with commas between; default: eval_frozen.protocols")
    parser.add_argument("--out", type=Path, help="where results go")
    parser.add_argument("--features", type=Path, help="where features are kept; default OUT/features")
    parser.add_argument("--drop-features", action="store_true", help="remove them at the end")
    parser.add_argument("--config", type=Path, help="YAML with a section eval_frozen")
    parser.add_argument(
        "--set", action="append", default=[], metavar="eval_frozen.key=value", help="override a setting"
    )
    arguments = parser.parse_args(argv)
    settings = load_evaluation_settings(EvalFrozenSettings, arguments.config, arguments.set)
    adopt_ranks()
    with (
        stop_signals_raise(),
        world_from_environment(timeout_minutes=TIMEOUT_MINUTES) as world,
        alone_without_memory(world),
        memory_errors_named("eval-frozen", lambda lack: WHAT_TO_TURN, world.device),
    ):
        evaluation = agreed(lambda: prepare_scoring(arguments, settings, world), world)
        scoring = Scoring(evaluation)
        with os_errors_named(evaluation.out):
            scoring.run()
            if world.is_main:
                _conclude(scoring, evaluation, drop=arguments.drop_features)
    return 0


def prepare_scoring(arguments: argparse.Namespace, settings: EvalFrozenSettings, world: World) -> FrozenEvaluation:
    """Read and check all inputs, and say what will run; nothing is written.

    Raises:
        InputError: weights, data or a setting are wrong.
    """
    wanted = arguments.protocols.split(",") if arguments.protocols else settings.protocols
    protocols = named_protocols(wanted)
    subjects = named_subjects(
        arguments.weights,
        format=arguments.format,
        backbone=arguments.backbone,
        part=arguments.part,
        checkpoint=arguments.checkpoint,
    )
    out = arguments.out or default_out(arguments.weights, subjects[0])
    subjects += baselines_of(subjects[-1], settings.baselines)
    if world.is_main:
        for subject in subjects:
            _say_weights(subject)
    taken = {FEATURES_FOLDER, REPLACED_FOLDER}
    image_sets = []
    for folder in arguments.data:
        data = open_dataset(folder, settings.data, needs=needs_of(protocols))
        check_report_names(settings.report_classes, data)
        name = _free_name(safe_name(folder.resolve().name), taken)
        image_sets.append(ImageSet(name=name, data=data, plan=plan_protocols(data, wanted)))
        check_superpixels(image_sets[-1].plan, data, settings)
        if world.is_main:
            _say_data(image_sets[-1])
    return FrozenEvaluation(
        settings=settings,
        image_sets=image_sets,
        subjects=subjects,
        out=out,
        features=arguments.features or out / FEATURES_FOLDER,
        functions=SCORE_FUNCTIONS,
        world=world,
    )


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or that with a number where another set of images has it."""
    numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, 1_000_000))
    free = next(one for one in numbered if one not in taken)
    taken.add(free)
    return free


def _say_weights(subject: Subject) -> None:
    loaded, record = subject.loaded, subject.record
    if loaded is None:
        say(f"weights {subject.label}: {subject.backbone}, batch norm statistics {record.batch_norm}")
        return
    say(
        f"weights {subject.label}: {subject.backbone}, format {loaded.format}, {100 * loaded.loaded:g} % of the "
        f"backbone loaded, sha256 {loaded.sha256[:16]}"
    )
    for note in loaded.notes:
        say(f"  {note}")


def _say_data(image_set: ImageSet) -> None:
    data = image_set.data
    train = f", {len(data.train.names)} of train" if data.train else ""
    say(
        f"data {image_set.name}: {data.layout}, {len(data.classes)} classes, {len(data.val.names)} images of val{train}"
    )
    for note in data.notes:
        say(f"  {note}")
    say(f"  runs: {', '.join(protocol.name for protocol in image_set.plan.chosen)}")
    for name, why in image_set.plan.left_out.items():
        say(f"  left out: {name} ({why})")


def _conclude(scoring: Scoring, evaluation: FrozenEvaluation, *, drop: bool) -> None:
    """Print table, seconds and paths; write the summary last."""
    rows, labels = summary_rows(evaluation, scoring.scores), [subject.label for subject in evaluation.subjects]
    print(table_of_rows(rows, labels))
    print(seconds_by_phase(scoring.scores.values()))
    for picture in draw_epochs(evaluation, rows):
        print(f"over epochs: {picture}")
    path = write_summary(evaluation, rows)
    if drop:
        scoring.remove_features()
    elif kept := scoring.kept_features():
        print(f"features: {kept} kept in {evaluation.features}; --drop-features removes them at the end")
    print(
        f"results: {path}, and results.json and predictions.png in {evaluation.out}/<data>/<weights>/<protocol>/seed<k>"
    )


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
