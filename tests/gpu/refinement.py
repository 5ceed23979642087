"""Operators of refinement on the device and on the CPU: batch norm's gather, K-means, masks."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from tests.gpu.device import CPU, CUDA, DEVICE, host_may_not_wait, wait
from tests.gpu.places import DRY
from tests.gpu.telling import check
from train.distributed.batch_norm import statistics_by_part, with_global_batch_norm
from train.r2o.batch_norms import batch_norm_buffers_kept
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.masks import align_label_map, cell_areas


def checks() -> None:
    with check("batch norm over ranks, against torch's own") as c:
        c.update(batch_norm())
        c["ok"] = max(c["fp32"].values()) < 1e-3 and max(c["bf16"].values()) < 0.1
    with check("K-means, 1 and 8 groups, on the device and on the CPU") as c:
        for groups in (1, 2 if DRY else 8):
            ratios, c[f"same_bits_twice_{groups}"] = clustered(groups)
            c[f"inertia_ratio_{groups}"], c["ok"] = ratios, c.get("ok", True) and max(ratios) < 1.02
    with check("cell areas and aligned masks, on the device and on the CPU") as c:
        c.update(masks())
        c["ok"] = max(c["areas_diff"], c["masks_diff"], c["masks_diff_in_autocast"]) < 1e-4


def batch_norm() -> dict[str, dict[str, float]]:
    """The largest differences of `GlobalBatchNorm`, in a world of one rank, from a batch norm that takes one view at
    a time: output, gradients and running statistics of both views; then without running statistics, as refinement is.
    """
    dist.init_process_group("nccl" if CUDA else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return {"fp32": differences(torch.float32), "bf16": differences(torch.bfloat16)}
    finally:
        dist.destroy_process_group()


def differences(dtype: torch.dtype) -> dict[str, float]:
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(64).to(DEVICE)
    ours = with_global_batch_norm(copy.deepcopy(theirs))
    x, gradient = (2 + torch.randn(16, 64, 14, 14, device=DEVICE) for _ in range(2))
    found = []
    for norm, one_pass in ((ours, True), (theirs, False)):
        mine = x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
        with statistics_by_part(norm, 2) if one_pass else nullcontext():
            out = norm(mine) if one_pass else torch.cat([norm(view) for view in mine.chunk(2)])
        out.backward(gradient.to(dtype))
        with batch_norm_buffers_kept(norm):
            kept = norm(mine)
        names = ("output", "of x", "of weight", "of bias", "running mean", "running variance", "without buffers")
        values = (out, mine.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var, kept)
        found.append({name: value.detach().float() for name, value in zip(names, values, strict=True)})
    # a gradient of weight is a sum over 3,136 places
    scale = {name: max(1.0, float(value.abs().max())) for name, value in found[1].items()}
    return {name: float((found[0][name] - found[1][name]).abs().max()) / scale[name] for name in found[0]}


def clustered(groups: int) -> tuple[list[float], bool]:
    """Inertia as a share of the CPU's, in some groups; whether twice gives the same bits. The host may not wait."""
    centres = torch.randn(groups, 200, 64 if DRY else 1024)
    noise = torch.randn(groups, 400 if DRY else 3200, centres.shape[2])
    rows = F.normalize(centres.repeat(1, 2 if DRY else 16, 1) + 0.5 * noise, dim=2)
    valid = torch.rand(rows.shape[:2]) < 0.97
    uniforms = seeding_uniforms(32 if DRY else 128, seed=0, step=0, first_group=0, num_groups=groups)
    there = [t.to(DEVICE) for t in (rows, valid, uniforms)]
    wait()
    with host_may_not_wait():
        ours = [kmeans(there[0], there[1], uniforms=there[2], iterations=10) for _ in range(2)]
    other = kmeans(rows, valid, uniforms=uniforms, iterations=10)
    ratios = [round(float(v), 6) for v in ours[0].inertia.cpu() / other.inertia][:3]
    return ratios, bool(torch.equal(ours[0].centres, ours[1].centres))


def masks() -> dict[str, object]:
    """Largest differences from the CPU's, and whether twice gives the same bits."""
    labels = torch.randint(0, 100, (8, 56, 56)).repeat_interleave(4, 1).repeat_interleave(4, 2).int()
    refined, box = torch.randint(0, 32, (8, 14, 14)), torch.tensor([[0.1, 0.2, 0.7, 0.9]]).repeat(8, 1)
    flipped = torch.arange(8) % 2 == 0

    def aligned(device: torch.device) -> torch.Tensor:
        return align_label_map(refined.to(device), 32, crop_box=box.to(device), flipped=flipped.to(device), size=(7, 7))

    found: dict[str, object] = {}
    made = {
        "areas": [cell_areas(labels.to(d), 100, (14, 14)).cpu() for d in (CPU, DEVICE, DEVICE)],
        "masks": [aligned(d).cpu() for d in (CPU, DEVICE, DEVICE)],
    }
    for name, (a, b, again) in made.items():
        found[f"{name}_diff"] = float((a - b).abs().max())
        found[f"{name}_same_bits_twice"] = bool(torch.equal(b, again))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        half = aligned(DEVICE)
    found["masks_dtype_in_autocast"] = str(half.dtype)
    found["masks_diff_in_autocast"] = float((half.float().cpu() - made["masks"][0]).abs().max())
    return found
