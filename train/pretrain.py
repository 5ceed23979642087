"""Pretrain: build → resume → loop → save. (`r2o pretrain` starts it.)

By hand: `torchrun --nproc-per-node 8 -m -- train.pretrain --shards … --run … --config …`, or on every task of
`srun python -m train.pretrain …`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.foundation.errors import AgreedError, InputError, exit_code_of
from pipeline.foundation.progress import say
from pipeline.foundation.settings import load_settings
from pipeline.foundation.this_rank import is_first_rank, this_rank
from train.config.evals import all_sections
from train.config.pretrain import PretrainSettings
from train.distributed.environment import adopt_ranks, node_ranks, num_ranks
from train.distributed.world import LostRankError, world_from_environment
from train.engine.job import check_job
from train.engine.loop import pretrain
from train.out_of_memory import alone_without_memory
from train.run.stopping import StoppedError, StopRequest, exit_code_after, stop_request

MAIN_SPEAKS_FIRST = 10.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of one rank."""
    parser = argparse.ArgumentParser(prog="python -m train.pretrain", description=__doc__)
    parser.add_argument("--shards", required=True, help="path or URL")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--init", type=Path, help="weights that the backbone begins with")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args(argv)
    settings = load_settings(PretrainSettings, "pretrain", arguments.config, arguments.overrides, all_sections())
    adopt_ranks()
    with stop_request() as request:
        try:
            return _main(arguments, settings, request)
        except StoppedError:
            assert request.signal is not None
            if is_first_rank():
                say(f"pretrain: {request.signal.name}: stopped before the first step; the same command begins again")
            return exit_code_after(request.signal.name)


def _main(arguments: argparse.Namespace, settings: PretrainSettings, request: StopRequest) -> int:
    try:
        job = check_job(
            settings,
            shards=arguments.shards,
            run=arguments.run,
            num_ranks=num_ranks(),
            node_ranks=node_ranks(),
            init=arguments.init,
        )
        minutes = settings.run.collective_timeout_minutes
        with world_from_environment(timeout_minutes=minutes) as world, alone_without_memory(world):
            return pretrain(job, world, request)
    except LostRankError as error:
        time.sleep(MAIN_SPEAKS_FIRST / 2)  # whoever started the ranks blames the one that died, and ends this one
        say(f"r2o: {error}")
        return error.code
    except InputError as error:
        if is_first_rank():
            raise
        # As a rule every rank finds the same, and launchers end the others when one ends. A fault that this rank alone
        # has is said after that time, by the rank's number. Once ranks have met, the others have been told of it, and
        # have said it before.
        time.sleep(MAIN_SPEAKS_FIRST)
        names_itself = isinstance(error, AgreedError) or str(error).startswith(f"rank {this_rank()} ")
        raise error if names_itself else InputError(f"rank {this_rank()}: {error}") from None


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
