"""Whole steps on the device: in every precision, against the CPU, twice, and where the host waits."""

from __future__ import annotations

import torch

from tests.gpu.device import CPU, CUDA, host_waits
from tests.gpu.places import DRY
from tests.gpu.telling import check
from tests.gpu.trainer import SMALL_MODEL, Trainer, settings_of

BATCH = 16 if DRY else 32


def checks() -> None:
    with check("one step in every precision from the same weights") as c:
        for precision in ("fp32", "tf32", "bf16", *(["fp16"] if CUDA else [])):
            c[precision] = in_precision(precision)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with check("figures of a step on the device and on the CPU, fp32") as c:
        settings = settings_of(BATCH, 16, run={"precision": "fp32"}, model=SMALL_MODEL)
        here, other = Trainer(settings).step(), Trainer(settings, device=CPU).step()
        names = ("loss", "grad_norm", "masks_per_image", "clusters_in_use")
        c["device"], c["cpu"] = ({n: round(getattr(f, n), 5) for n in names} for f in (here, other))
        c["ok"] = abs(here.loss - other.loss) < 0.02
    with check("gradients and momenta keep channels last; steps repeat bit for bit") as c:
        c.update(two_steps_twice())
    with check("host waits in a step, by line") as c:
        t = Trainer(settings_of(BATCH, 16))
        t.step()
        t.step()
        with host_waits() as where:
            t.step()
        c["waits"], c["where"] = where.total(), dict(where)
        c["ok"] = where.total() <= 2  # for the number of masks and for the figures; see test_launches.py


def in_precision(precision: str) -> dict[str, float]:
    figures = Trainer(settings_of(BATCH, 16, run={"precision": precision})).step()
    return {
        "loss": round(figures.loss, 5),
        "grad_norm": round(figures.grad_norm, 5),
        "masks": figures.masks_per_image,
        "overflowed": figures.overflowed,
    }


def two_steps_twice() -> dict[str, object]:
    """Gradients and momenta not in channels last, of how many; the largest difference of parameters."""
    pair = [Trainer(settings_of(BATCH, 16, optim={"warmup_epochs": 0})) for _ in range(2)]
    for trainer in pair:
        trainer.step()
        trainer.step()
    first, second = pair
    kernels = [p for p in first.model.parameters() if p.grad is not None and p.ndim == 4]
    momenta = [m for p in kernels for m in first.training.optimizer.state[p].values() if m.ndim == 4]
    differences = [
        float((a.detach() - b.detach()).abs().max())
        for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True)
    ]
    return {
        "grads_not_channels_last": not_channels_last([p.grad for p in kernels if p.grad is not None]),
        "momenta_not_channels_last": not_channels_last(momenta),
        "largest_difference": max(differences),
    }


def not_channels_last(tensors: list[torch.Tensor]) -> tuple[int, int]:
    return sum(not t.is_contiguous(memory_format=torch.channels_last) for t in tensors), len(tensors)
