"""The part `ddp2`: two ranks on one device through gloo, which NCCL refuses. `rank` as argument: one of the two."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from tests.gpu.places import DRY
from tests.gpu.telling import tell


def main() -> None:
    for precision in ("bf16",) if DRY else ("fp32", "bf16"):
        pair(precision)


def pair(precision: str) -> None:
    """DDP and batch norm over both ranks, on the device's tensors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.ddp2", "rank", precision],
            env={**os.environ, **fixed, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate()[0] for rank in ranks]
    print("\n".join(said))
    ok = all(rank.returncode == 0 for rank in ranks)
    last = {} if ok else {"said": [line for line in said[0].splitlines() if line.strip()][-3:]}
    tell(f"two ranks, {precision}", ok=ok, exits=[rank.returncode for rank in ranks], **last)


def rank_main(precision: str) -> None:
    """Two steps of a rank; the second is timed, and its waits are counted."""
    import torch.distributed as dist

    from tests.gpu.device import DEVICE, host_waits, wait
    from tests.gpu.trainer import Trainer, settings_of
    from train.distributed.world import World
    from train.engine.build import distributed

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    world = World(rank, 2, DEVICE)
    trainer = Trainer(settings_of(16 if DRY else 64, 16, run={"precision": precision}), world)
    trainer.training = distributed(trainer.training)
    trainer.step()
    with host_waits() as where:
        began = time.perf_counter()
        figures = trainer.step()
        wait()
        seconds = time.perf_counter() - began
    if rank == 0:
        tell(
            f"rank 0, {precision}",
            loss=round(figures.loss, 5),
            grad_norm=round(figures.grad_norm, 5),
            seconds=round(seconds, 3),
            waits=where.total(),
            where=dict(where.most_common(8)),
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:2] == ["rank"]:
        rank_main(sys.argv[2])
    else:
        main()
