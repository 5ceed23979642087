"""What one rank of test_distributed.py does: started by torchrun, leaves its results as files."""

import sys
from pathlib import Path

import torch

from pipeline.artifacts.settings import load_settings
from train.config import PretrainSettings
from train.distributed import GlobalBatchNorm, world_from_environment
from train.pretrain import check_job, pretrain

ROWS = {"uneven": (5, 3), "one": (4, 1), "none": (6, 0), "single": (1, 0), "empty": (0, 0)}


def batch_norm_case(rank: int, rows: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Forward and backward of this rank's rows through a global batch norm."""
    generator = torch.Generator().manual_seed(0)
    everything = torch.randn(sum(rows), 4, 3, generator=generator)
    weights = torch.randn(sum(rows), 4, 3, generator=generator)
    norm = GlobalBatchNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    mine = slice(0, rows[0]) if rank == 0 else slice(rows[0], None)
    x = everything[mine].clone().requires_grad_()
    out = norm(x)
    (out * weights[mine]).sum().backward()
    return {
        "out": out.detach(), "grad": x.grad, "weight_grad": norm.weight.grad, "bias_grad": norm.bias.grad,
        "running_mean": norm.running_mean, "running_var": norm.running_var,
    }  # fmt: skip


def main() -> None:
    """Batch norm cases, then a short run."""
    out, shards, config = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    settings = load_settings(PretrainSettings, "pretrain", config)
    with world_from_environment() as world:
        if world.size > 1:
            cases = {name: batch_norm_case(world.rank, rows) for name, rows in ROWS.items()}
            torch.save(cases, out / f"batch-norm-{world.rank}.pt")
        job = check_job(
            settings, shards=str(shards), run=out / "run", num_ranks=world.size, node_ranks=range(world.size)
        )
        pretrain(job, world)


if __name__ == "__main__":
    main()
