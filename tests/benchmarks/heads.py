"""The part `heads` of tests.benchmarks.step: the valid rows alone against padded ones and against all."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.benchmarks.trainer import Trainer, sections_of, settings_of
from tests.benchmarks.turns import DEVICE, best_of


def heads(shards: Path, args: argparse.Namespace) -> None:
    """The valid rows alone, against padding them to buckets of 256, against all B × K rows: both heads, both ways."""
    for k in (4, 128):
        trainer = Trainer(shards, settings_of(args.batch, k, **sections_of(args)))
        trainer.step()
        valid = max(round(trainer.masks * args.batch), 2)
        every = torch.randn(args.batch * k, trainer.model.online["backbone"].c5_channels, device=DEVICE)
        bucket = every[: min(-(-valid // 256) * 256, len(every))]
        torch.testing.assert_close(
            both_ways(trainer, every[:valid], valid),
            both_ways(trainer, bucket, valid, padded=True)[:valid],
            atol=0.05,
            rtol=0.05,
        )
        seconds = best_of(
            args.rounds,
            {
                "valid": lambda rows=every[:valid], t=trainer, n=valid: both_ways(t, rows, n),
                "padded": lambda rows=bucket, t=trainer, n=valid: both_ways(t, rows, n, padded=True),
                "all": lambda rows=every, t=trainer, n=valid: both_ways(t, rows, n),
            },
        )
        print(
            f"heads.padded_vs_valid_k{k} {seconds['padded'] / seconds['valid']:.2f}  heads.all_vs_valid_k{k} "
            f"{seconds['all'] / seconds['valid']:.2f}   {valid} valid rows {seconds['valid'] * 1e3:.1f} ms, "
            f"{len(bucket)} padded {seconds['padded'] * 1e3:.1f} ms, {len(every)} in all {seconds['all'] * 1e3:.1f} ms"
        )


def both_ways(trainer: Trainer, rows: Tensor, valid: int, *, padded: bool = False) -> Tensor:
    """Rows forward through projector and predictor, and back from the valid ones."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=trainer.settings.run.precision == "bf16"):
        for head in (trainer.model.online["projector"], trainer.model.predictor):
            rows = head_of_first(head, rows, valid) if padded else head(rows)
    rows[:valid].float().square().sum().backward()
    return rows.detach()


def head_of_first(head: nn.Module, rows: Tensor, count: int) -> Tensor:
    """A head whose batch statistics are those of the first `count` rows: what padding to buckets needs."""
    hidden, norm = head[0](rows), head[1]
    variance, mean = torch.var_mean(hidden[:count].float(), 0, correction=0)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    return head[3](head[2](torch.addcmul(norm.bias - mean * scale, hidden, scale)))
