"""The `r2o` command: one verb per stage, and `run` and `status` over the whole graph."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config import code_version
from pipeline.foundation.errors import exit_code_of
from pipeline.verbs import evaluations, results, shards, training, workflow
from pipeline.verbs.arguments import Parser, with_config


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `r2o`; gives the exit code."""
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = parser().parse_args(argv)
    code: int = arguments.verb(arguments)
    return code


def parser() -> Parser:
    """The whole command line."""
    made = Parser(prog="r2o", description="Region-to-Object representation learning, stage by stage.")
    made.add_argument("--version", action="version", version=f"r2o {code_version()}")
    verbs = made.add_subparsers(required=True, metavar="VERB")
    of_stage = with_config()
    shards.add_verbs(verbs, of_stage)
    training.add_verbs(verbs, of_stage)
    evaluations.add_verbs(verbs, of_stage)
    workflow.add_verbs(verbs)
    results.add_verbs(verbs)
    return made


if __name__ == "__main__":
    sys.exit(main())
