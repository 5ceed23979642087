"""Memory that the fine-tuning lacks, as the command tells it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.train.evals.test_voc import call
from train.evals import voc as command

SMALLER = (
    "lower eval_voc.batch_size, now 2, or crop_size, now 32; whole images need less with a smaller short_side, now 48"
)
READERS = "lower eval_voc.num_workers, now 0, or cache_mib, now 1024"


@pytest.mark.parametrize("doing", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("lacking", "line"),
    [
        (
            lambda: torch.empty(2**60, dtype=torch.uint8),
            f"host memory (1.15e+09 GB more asked for); {SMALLER}; or {READERS}",
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), f"out of GPU memory; {SMALLER}"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            f"a process that reads images is out of host memory; {READERS}; or {SMALLER}",
        ),
    ],
)
def test_a_lack_of_memory_is_one_line(
    run_folder: Path, voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    lacking: Callable[[], object] | Exception, line: str, doing: str,
) -> None:  # fmt: skip
    def lacks(*_: object, **__: object) -> None:
        if isinstance(lacking, Exception):
            raise lacking
        lacking()

    monkeypatch.setattr(command, "fine_tune", lacks if doing == "train" else lambda *_, **__: [])
    monkeypatch.setattr(command, "evaluate", lacks)
    assert call(run_folder, voc, "inits=[run]", "seeds=[0]", "short_side=48") == 2
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1].startswith(f"r2o: error: eval-voc, run seed 0 {doing}: ")
    assert errors.endswith(f"{line}\n")
    assert "Traceback" not in errors
