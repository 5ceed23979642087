"""What one rank of test_distributed.py does: started as a rank, leaves its results as files."""

import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from pipeline.foundation.settings import load_settings
from train.config.pretrain import ObjectiveSettings, PretrainSettings, RefineSettings
from train.distributed import batch_norm
from train.distributed.batch_norm import GlobalBatchNorm, statistics_by_part
from train.distributed.collectives import gather_rows, sum_over_ranks
from train.distributed.replicas import distribute
from train.distributed.world import World, world_from_environment
from train.engine.build import objective_of, refinement_of
from train.engine.job import check_job
from train.engine.loop import pretrain
from train.models.backbone import build_backbone
from train.models.heads import Head
from train.r2o.loss import Everywhere, contrastive_loss_sum
from train.r2o.model import R2O, Batch
from train.run.stopping import StopRequest

# rows of both ranks, in how many parts
ROWS = {
    "uneven": ((5, 3), 1),
    "one": ((4, 1), 1),
    "none": ((6, 0), 1),
    "single": ((1, 0), 1),
    "empty": ((0, 0), 1),
    "two parts": ((6, 4), 2),
    "two parts on one rank": ((0, 8), 2),
    "images": ((4, 4), 1, True),
    "two parts of images": ((4, 4), 2, True),
}

HALF = {"half": ((40, 24), 1), "half, none": ((6, 0), 1)}


def reduced(g, x, mean, inverse_std, weight, *_):  # type: ignore[no-untyped-def]
    """torch.batch_norm_backward_reduce, which is for CUDA alone, as its documentation has it."""
    by_channel = [axis for axis in range(x.dim()) if axis != 1]
    shape = (1, -1, *(1 for _ in range(2, x.dim())))
    total = g.float().sum(by_channel)
    total_xmu = (g * (x - mean.view(shape))).float().sum(by_channel)
    return total, total_xmu, total_xmu * inverse_std, total


def by_element(g, x, mean, inverse_std, weight, total, total_xmu, count):  # type: ignore[no-untyped-def]
    """torch.batch_norm_backward_elemt, likewise."""
    assert count.dtype == torch.int32
    shape = (1, -1, *(1 for _ in range(2, x.dim())))
    rows = count.sum()
    slope = inverse_std**2 * total_xmu / rows
    rest = g - (total / rows).view(shape) - (x - mean.view(shape)) * slope.view(shape)
    return (rest * (inverse_std * weight).view(shape)).to(x.dtype)


def batch_norm_case(
    rank: int, rows: tuple[int, int], parts: int, images: bool = False, *, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Forward and backward of this rank's rows, of every part, through a global batch norm."""
    generator = torch.Generator().manual_seed(0)
    places = (3, 2) if images else (1,) if sum(rows) == 1 else (3,)
    shape = (sum(rows), 4, *places)
    everything, weights = ((2 + torch.randn(shape, generator=generator)).to(dtype) for _ in range(2))
    norm = GlobalBatchNorm(4)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
        norm.running_mean.fill_(0.5)
    mine = [i for i in range(sum(rows)) if (i % (sum(rows) // parts) < rows[0] // parts) == (rank == 0)]
    x = everything[mine].clone()
    x = (x.contiguous(memory_format=torch.channels_last) if images else x).requires_grad_()
    with statistics_by_part(norm, parts):
        out = norm(x)
    (out * weights[mine]).sum().backward()
    return {
        "rows": torch.tensor(mine), "out": out.detach(), "grad": x.grad,
        "weight_grad": norm.weight.grad, "bias_grad": norm.bias.grad,
        "running_mean": norm.running_mean, "running_var": norm.running_var, "batches": norm.num_batches_tracked,
    }  # fmt: skip


def batch_norm_cases(rank: int) -> dict[str, dict[str, torch.Tensor]]:
    """All of them by the kernels of a CPU, by those of CUDA, and in torch.compile; one with half precision."""
    cases = {name: batch_norm_case(rank, *rows) for name, rows in ROWS.items()}
    for name, rows in HALF.items():
        cases[name] = batch_norm_case(rank, *rows, dtype=torch.bfloat16)
    fake = {"batch_norm_backward_reduce": reduced, "batch_norm_backward_elemt": by_element}
    with patch.multiple(torch, **fake), patch.object(batch_norm, "_is_on_cuda", lambda x: True):
        cases |= {f"{name}, as on CUDA": batch_norm_case(rank, *rows) for name, rows in ROWS.items()}
    with patch.object(torch.compiler, "is_compiling", lambda: True):
        cases |= {f"{name}, as compiled": batch_norm_case(rank, *rows) for name, rows in ROWS.items()}
    return cases


def compiled_case(rank: int) -> dict[str, torch.Tensor]:
    """What torch.compile, without any break of its graph, changes about two steps of a layer with two parts; all are
    differences."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Conv2d(3, 4, 3), GlobalBatchNorm(4), nn.ReLU())
        function = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
        x = torch.randn(8, 3, 6, 6)[4 * rank : 4 * rank + 4]
        for _ in range(2):
            layer.zero_grad()
            mine = x.clone().requires_grad_()
            with statistics_by_part(layer, 2):
                out = function(mine)
            out.square().sum().backward()
        gradients = [p.grad for p in layer.parameters()]
        found.append([out.detach(), mine.grad, *gradients, *(b.double() for b in layer.buffers())])
    return {str(i): (a - b).abs().max() for i, (a, b) in enumerate(zip(*found, strict=True))}


def masks_case(world: World, valid_on_the_second: int, mask_weight: str = "equal") -> dict[str, torch.Tensor]:
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
    objective = objective_of(ObjectiveSettings(mask_weight=mask_weight), concatenate_views=False)
    r2o = R2O(build_backbone("resnet18", seed=0), *heads, refinement=refinement, objective=objective)
    model = distribute(r2o.train(), world)
    output = model(batch, torch.zeros(share // 4, 4))
    weight = sum_over_ranks(output.weight_sum, world)
    (output.loss_sum * world.size / weight).backward()
    gradients = {n.removeprefix("module."): p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"here": output.num_masks, "loss": sum_over_ranks(output.loss_sum, world) / weight, **gradients}


def gathered_case(world: World) -> dict[str, torch.Tensor]:
    """What this rank's rows get from losses of all ranks that are of everybody's rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 6, 3, 8, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, 2, (2, 6, 3), generator=generator)
    weights = torch.randn(2, 6, 3, 8, generator=generator, dtype=torch.float64)  # of each rank's loss
    share = 6 // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)

    alone = rows[0, mine].clone().requires_grad_()
    everybody = gather_rows(alone, world)
    (everybody.values.sin() * weights[world.rank]).sum().backward()

    views = rows[0, mine].clone().requires_grad_(), rows[1, mine].clone().requires_grad_()
    loss = contrastive_loss_sum(
        views,
        views,
        (ids[0, mine], ids[1, mine]),
        temperature=0.5,
        gather=lambda values: Everywhere(*gather_rows(values, world)),
    )
    loss.backward()
    return {
        "rows": rows[0], "weights": weights, "values": everybody.values.detach(),
        "first": torch.tensor(everybody.first), "grad": alone.grad,
        "nt_xent": sum_over_ranks(loss, world), "nt_xent_grads": torch.stack([view.grad for view in views], 1),
    }  # fmt: skip


def main() -> None:
    """Batch norm cases, steps of uneven masks, then a short run."""
    out, shards, config = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    settings = load_settings(PretrainSettings, "pretrain", config)
    with world_from_environment() as world:
        uneven = {str(count): masks_case(world, count) for count in (0, 1)}
        uneven |= {f"1 by {how}": masks_case(world, 1, how) for how in ("image", "area")}
        torch.save(uneven, out / f"masks-{world.rank}.pt")
        torch.save(gathered_case(world), out / f"gathered-{world.rank}.pt")
        if world.size > 1:
            torch.save(compiled_case(world.rank), out / f"compiled-{world.rank}.pt")
            torch.save(batch_norm_cases(world.rank), out / f"batch-norm-{world.rank}.pt")
        job = check_job(
            settings, shards=str(shards), run=out / "run", num_ranks=world.size, node_ranks=range(world.size)
        )
        pretrain(job, world, StopRequest())


if __name__ == "__main__":
    main()
