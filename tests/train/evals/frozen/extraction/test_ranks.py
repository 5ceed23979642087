"""Ranks share the batches of a pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.train.evals.frozen.extraction.rank_program import whole_pass
from train.distributed.world import World
from train.evals.frozen.extraction.arrays import FEATURES_NAME

MODULE = "tests.train.evals.frozen.extraction.rank_program"


@pytest.mark.processes
@pytest.mark.long
def test_two_ranks_give_the_bytes_of_one(tmp_path: Path) -> None:
    whole_pass(tmp_path / "1", World(0, 1, torch.device("cpu")))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launchers.ranks", "2", MODULE, str(tmp_path / "2")],
        timeout=240, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in ("c4.npy", "c5.npy", "pooled.npy", FEATURES_NAME):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    read = [json.loads((tmp_path / "2" / f"read-{rank}.json").read_text()) for rank in (0, 1)]
    assert read == [[0, 1, 2, 3, 8, 9], [4, 5, 6, 7]]
