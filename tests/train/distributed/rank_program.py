"""What one rank of test_distributed.py does: started as a rank, leaves its results as files."""

import sys
from pathlib import Path

import torch

from pipeline.foundation.settings import load_settings
from train.config.pretrain import ObjectiveSettings, PretrainSettings, RefineSettings
from train.distributed.collectives import sum_over_ranks
from train.distributed.replicas import GlobalBatchNorm, distribute
from train.distributed.world import World, world_from_environment
from train.engine.build import objective_of, refinement_of
from train.engine.job import check_job
from train.engine.loop import pretrain
from train.models.backbone import build_backbone
from train.models.heads import Head
from train.r2o.model import R2O, Batch
from train.run.stopping import StopRequest

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


def masks_case(world: World, valid_on_the_second: int) -> dict[str, torch.Tensor]:
    """Gradients of one loss over all ranks, where the last four of eight images hold so many valid masks together."""
    generator = torch.Generator().manual_seed(0)
    crop_box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(8, 2, 1)
    # their views lie in opposite corners of a 2 × 2 grid of masks, but for those that share the first
    crop_box[4 + valid_on_the_second :, 1] = torch.tensor([0.55, 0.55, 1.0, 1.0])
    crop_box[4:, 0] = torch.tensor([0.0, 0.0, 0.45, 0.45])
    everything = Batch(
        images=torch.randn(8, 3, 64, 64, generator=generator),
        superpixels=torch.zeros(8, 64, 64, dtype=torch.int32),
        views=torch.randn(8, 2, 3, 64, 64, generator=generator),
        crop_box=crop_box,
        flipped=torch.zeros(8, 2, dtype=torch.bool),
    )
    share = 8 // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    batch = Batch(*(None if t is None else t[mine] for t in everything))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        heads = Head(512, hidden_size=32, out_size=16), Head(16, hidden_size=32, out_size=16)
    refine = RefineSettings(clustering_group_size=4, clustering="none", regions="grid", grid=(2, 2))
    refinement = refinement_of(refine, max_superpixels=1)
    objective = objective_of(ObjectiveSettings(), concatenate_views=False)
    r2o = R2O(build_backbone("resnet18", seed=0), *heads, refinement=refinement, objective=objective)
    model = distribute(r2o.train(), world)
    output = model(batch, torch.zeros(share // 4, 4))
    count = sum_over_ranks(output.num_masks, world)
    (output.loss_sum * world.size / count).backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"here": output.num_masks, "loss": sum_over_ranks(output.loss_sum, world) / count, **gradients}


def main() -> None:
    """Batch norm cases, steps of uneven masks, then a short run."""
    out, shards, config = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    settings = load_settings(PretrainSettings, "pretrain", config)
    with world_from_environment() as world:
        uneven = {count: masks_case(world, count) for count in (0, 1)}
        torch.save(uneven, out / f"masks-{world.rank}.pt")
        if world.size > 1:
            cases = {name: batch_norm_case(world.rank, rows) for name, rows in ROWS.items()}
            torch.save(cases, out / f"batch-norm-{world.rank}.pt")
        job = check_job(
            settings, shards=str(shards), run=out / "run", num_ranks=world.size, node_ranks=range(world.size)
        )
        pretrain(job, world, StopRequest())


if __name__ == "__main__":
    main()
