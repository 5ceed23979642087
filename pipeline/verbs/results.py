"""The verb of what evaluations found: results."""

from __future__ import annotations

import argparse

from pipeline.foundation.errors import InputError, os_errors_named
from pipeline.verbs.arguments import Parser, Verbs, path

RESAMPLES, MOST_RESAMPLES = 2000, 1_000_000


def add_verbs(verbs: Verbs[Parser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser("results", help="one table over runs and weights, beside the paper's figures")
    parser.add_argument("places", nargs="*", type=path, metavar="PATH", help="runs, evaluations, single results.json")
    parser.add_argument("--score", action="append", default=[], help="a score instead of the headlines; all: every one")
    parser.add_argument("--per-class", action="store_true", help="also the scores by class")
    resamples = f"of images, for intervals ({RESAMPLES}); 0: none"
    parser.add_argument("--bootstrap", type=_resamples, default=RESAMPLES, metavar="RESAMPLES", help=resamples)
    pair = "how likely A beats B; each a label, `label backbone`, or the first digits of a hash"
    parser.add_argument("--compare", action="append", nargs=2, default=[], metavar=("A", "B"), help=pair)
    parser.add_argument("--against", metavar="A", help="the row that all are compared with (first of their backbone)")
    against = "Kendall's τ of every ranking of the weights with that by this protocol, such as voc"
    parser.add_argument("--rankings", metavar="PROTOCOL", help=against)
    parser.add_argument("--quoted", choices=("main", "all", "none"), default="main", help="the paper's figures (main)")
    parser.add_argument("--paper", action="store_true", help="print all figures of the paper and end")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="(text)")
    parser.add_argument("--out", type=path, metavar="FILE", help="write there instead of printing")
    parser.add_argument("--picture", type=path, metavar="PNG", help="also draw the scores and their intervals")
    parser.set_defaults(verb=_results)


def _resamples(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 7 or int(text) > MOST_RESAMPLES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MOST_RESAMPLES}")
    return int(text)


def _results(arguments: argparse.Namespace) -> int:
    from pipeline.report import report  # here, for it loads NumPy, which `r2o --help` does without

    if arguments.paper:
        if arguments.places or arguments.picture:
            raise InputError("r2o results --paper prints what the paper says; leave the paths and --picture out")
        report.give(report.paper_report(arguments.format), arguments.out)
        return 0
    if not arguments.places:
        raise InputError("r2o results needs a path: a run, an evaluation or a results.json; or --paper")
    wanted = report.Wanted(
        scores=tuple(arguments.score),
        per_class=arguments.per_class,
        resamples=arguments.bootstrap,
        against=arguments.against,
        pairs=tuple((ours, theirs) for ours, theirs in arguments.compare),
        rankings=arguments.rankings,
        quoted=arguments.quoted,
        format=arguments.format,
    )
    with os_errors_named(arguments.places[0]):
        text = report.make_report(arguments.places, wanted, picture=arguments.picture)
    report.give(text, arguments.out)
    return 0
