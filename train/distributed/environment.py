"""Who this process is among the ranks, by torchrun's or Slurm's variables."""

from __future__ import annotations

import os
import re

from pipeline.foundation.errors import InputError
from pipeline.foundation.this_rank import this_rank

FIRST_PORT, PORTS = 20_000, 10_000  # where the ranks of a Slurm job meet, by its number
START_ANEW = "start with torchrun or srun, or unset it"
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")


def adopt_ranks() -> None:
    """Set torchrun's variables from those of srun, where this process was started by it and not by torchrun.

    `SLURM_STEP_…` are set for the tasks of srun alone; a batch script, which is no rank, has none of them.
    Ranks are taken to fill one node after the other (srun's default).

    Raises:
        InputError: srun's variables are incomplete, or torchrun's do not name a rank.
    """
    given = os.environ
    if "RANK" not in given and given.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        given.update({name: given.get(name, value) for name, value in _of_srun().items()})
    for name in NUMBERS:
        if not re.fullmatch(r"[0-9]{1,9}", given.get(name, "0")):
            raise InputError(f"{name} is {given[name]!r}, which is no number; {START_ANEW}")
    if this_rank() >= num_ranks():
        raise InputError(f"RANK is {this_rank()}, but there are {num_ranks()} by WORLD_SIZE; {START_ANEW}")


def _of_srun() -> dict[str, str]:
    """torchrun's variables, from srun's. Raises InputError where these are incomplete."""
    given = os.environ
    try:
        tasks, node = _repeated(given["SLURM_STEP_TASKS_PER_NODE"]), int(given["SLURM_NODEID"])
        return {
            "RANK": given["SLURM_PROCID"],
            "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": given["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(tasks[node]),
            "MASTER_ADDR": _first_host(given["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(FIRST_PORT + (int(given["SLURM_JOB_ID"]) + 97 * int(given["SLURM_STEP_ID"])) % PORTS),
        }
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"srun's environment does not tell the ranks ({error!r}); start with torchrun") from None


def _repeated(counts: str) -> list[int]:
    """Slurm's short form of a list: "8(x3),4" is 8, 8, 8, 4."""
    parts = [part.removesuffix(")").partition("(x") for part in counts.split(",")]
    return [int(count) for count, _, times in parts for _ in range(int(times or 1))]


def _first_host(nodelist: str) -> str:
    """The first of Slurm's list of hosts: "gpu-[07-09,12],login" is gpu-07, …"""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    if first is None:
        raise ValueError(f"no host in {nodelist!r}")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def num_ranks() -> int:
    """How many processes there are, by torchrun's variables."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """This process's place among those of its node, by torchrun's variables."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_gpu(num_visible: int) -> int:
    """Which of the visible GPUs is this process's. `srun --gpus-per-task=1` shows each task its own alone."""
    return 0 if num_visible == 1 and "SLURM_PROCID" in os.environ else local_rank()


def node_ranks() -> range:
    """The ranks of this process's node, by torchrun's variables."""
    size = num_ranks()
    first = this_rank() - local_rank()
    return range(first, min(first + int(os.environ.get("LOCAL_WORLD_SIZE", 1)), size))
