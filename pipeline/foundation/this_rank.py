"""Which of a job's ranks this process is, by torchrun's RANK; outside of a job it is the first."""

from __future__ import annotations

import os


def this_rank() -> int:
    """This process's rank, 0 … num_ranks-1."""
    return int(os.environ.get("RANK", "0"))


def is_first_rank() -> bool:
    """Whether this is the rank that speaks for all."""
    return os.environ.get("RANK", "0") == "0"  # also where it is no number: then others say so
