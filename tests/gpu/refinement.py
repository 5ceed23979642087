"""Operators of refinement on the device and on the CPU: batch norm's gather, K-means, masks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.gpu.device import CPU, CUDA, DEVICE, host_may_not_wait, wait
from tests.gpu.places import DRY
from tests.gpu.telling import check
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.masks import align_label_map, cell_areas


def checks() -> None:
    if CUDA:
        with check("SyncBatchNorm's gather, bf16, no running statistics (refine under DDP)"):
            batch_norm_gather()
    with check("K-means, 1 and 8 groups, on the device and on the CPU") as c:
        for groups in (1, 2 if DRY else 8):
            ratios, c[f"same_bits_twice_{groups}"] = clustered(groups)
            c[f"inertia_ratio_{groups}"], c["ok"] = ratios, c.get("ok", True) and max(ratios) < 1.02
    with check("cell areas and aligned masks, on the device and on the CPU") as c:
        c.update(masks())


def batch_norm_gather() -> None:
    x = torch.randn(8, 16, 4, 4, device=DEVICE, dtype=torch.bfloat16)
    mean, invstd = torch.batch_norm_stats(x, 1e-5)
    counts = torch.full((2,), 128.0, device=DEVICE)
    torch.batch_norm_gather_stats_with_counts(
        x, torch.stack([mean] * 2), torch.stack([invstd] * 2), None, None, 0.1, 1e-5, counts
    )


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
