"""What one rank of test_watch.py does: `watch_program MINUTES DEED`. Rank 1 does the deed, the others wait.

After MINUTES without a sign of life a rank is lost. Only that: on a busy machine ranks take longer to meet.
"""

import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from pipeline.foundation.errors import InputError, exit_code_of
from pipeline.foundation.progress import say
from train.distributed import world as world_module
from train.distributed.watch import RankWatch
from train.distributed.world import LostRankError, World, world_from_environment


def deed(name: str, world: World) -> None:
    acts = world.rank == (0 if name.endswith("of the first") else 1)
    if name == "slow":
        time.sleep(4)
    elif name == "does not end":
        world_module.dist.destroy_process_group = lambda: time.sleep(600)
    elif name.startswith("collective"):
        if acts:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.zeros(1))
    elif not acts:
        time.sleep(600)  # as in a collective of NCCL, which does not notice
    elif name.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif name.startswith("stops"):
        os.kill(os.getpid(), signal.SIGSTOP)
    else:
        raise InputError("shard 7 is damaged")


def main() -> int:
    try:
        with world_from_environment() as world:
            deed(sys.argv[2], world)
    except LostRankError as error:
        say(f"r2o: {error}")
        return error.code
    except InputError:
        time.sleep(15)  # as `pretrain` leaves the word to the others
        raise
    return 0


if __name__ == "__main__":
    world_module.ENDING = 1.0
    seconds = 60 * float(sys.argv[1])
    world_module.RankWatch = lambda *given, **named: RankWatch(*given, **{**named, "seconds": seconds})
    sys.exit(exit_code_of(main))
