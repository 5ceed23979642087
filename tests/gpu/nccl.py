"""The part `nccl`: a small run on two GPUs through NCCL, and the same run on one; the day skips it where there is one.

Where there is no CUDA device the two ranks speak through gloo, so that a test sees all but NCCL itself.
"""

from __future__ import annotations

import subprocess
import sys

import yaml

from tests.gpu.device import CUDA
from tests.gpu.places import DRY, RUNS, shards
from tests.gpu.runs import afresh, arguments
from tests.gpu.smoke import SMALL
from tests.gpu.telling import check
from train.run.log import read_log

STEPS = 4  # of one epoch
MOST = {"fp32": 0.001, "bf16": 0.05}  # difference of losses, as a share: rounding moves cells between clusters
PRECISIONS = ("fp32",) if DRY else ("fp32", "bf16")
SETS = ("epochs=1", "curriculum.hold_epochs=0", "run.probe_every_epochs=null", "run.panels_every_epochs=100")


def main() -> None:
    started = {(precision, ranks): start(precision, ranks) for precision in PRECISIONS for ranks in (1, 2)}
    for precision in PRECISIONS:
        with check(f"two ranks against one process of the same global batch, {precision}") as c:
            c["device"] = "cuda" if CUDA else "cpu"
            c["one"], c["two"] = one, two = [losses_of(started, precision, ranks) for ranks in (1, 2)]
            c["worst"] = round(max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True)), 5)
            c["ok"] = len(one) == STEPS and c["worst"] <= MOST[precision]


def start(precision: str, ranks: int) -> subprocess.Popen[str]:
    """A run on so many devices."""
    name = f"nccl-{precision}-{ranks}"
    afresh(name)
    config = RUNS / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"pretrain": SMALL}))
    given = arguments(name, shards("tiny"), *SETS, f"run.precision={precision}", config=config)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "--", "train.pretrain", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses_of(started: dict[tuple[str, int], subprocess.Popen[str]], precision: str, ranks: int) -> list[float]:
    """Of its steps, once it has ended."""
    process = started[precision, ranks]
    said, _ = process.communicate()
    print(said)
    assert process.returncode == 0, f"{ranks} ranks ended with {process.returncode}: {said[-300:]}"
    return [round(line["loss"], 5) for line in read_log(RUNS / f"nccl-{precision}-{ranks}")]


if __name__ == "__main__":
    main()
