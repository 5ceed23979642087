"""Convolutions of few cells: a product of patches against oneDNN's convolution, alone and in a ResNet-18.

python -m tests.benchmarks.small_maps [--rounds 10] [--batch 32]

On one thread of a CPU, forward and backward, best of the rounds, taking turns. A ratio above 1 says that the product is
faster. `train.models.small_maps.MOST_CELLS` was chosen by it.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from torch import Tensor, nn

from tests.benchmarks.turns import best_of
from train.models.backbone import build_backbone
from train.models.small_maps import MOST_CELLS, SmallMapConv2d

LAYERS = ((512, 512, 2, 1), (512, 512, 3, 1), (512, 512, 4, 1), (256, 512, 4, 2))  # channels in, out, side, stride
PRECISIONS = (torch.bfloat16, torch.float32)


def main(argv: list[str] | None = None) -> int:
    """All layers, then the trunk."""
    parser = argparse.ArgumentParser(description="Products of patches against convolutions.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for dtype in PRECISIONS:
        for inside, outside, side, stride in LAYERS:
            layer = SmallMapConv2d(inside, outside, 3, stride=stride, padding=1, bias=False).to(dtype)
            x = torch.randn(args.batch, inside, side, side, dtype=dtype)
            compare(f"{inside}→{outside} at {side} × {side}, stride {stride}, {dtype}", layer, x, args.rounds)
        for side in (64, 96, 128):
            trunk = build_backbone("resnet18", seed=0)
            images = torch.randn(args.batch, 3, side, side)
            compare(f"resnet18, {side} px, {dtype}", trunk, images, args.rounds, autocast=dtype)
    print(f"products are taken up to {MOST_CELLS} cells")
    return 0


def compare(name: str, ours: nn.Module, x: Tensor, rounds: int, *, autocast: torch.dtype = torch.float32) -> None:
    """Print the ratio, and the milliseconds of both."""
    theirs = as_convolutions(ours)
    passes = [module.to(memory_format=torch.channels_last) for module in (ours, theirs)]  # type: ignore[call-overload]
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(x.shape[1] > 3)

    def both_ways(module: nn.Module) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast == torch.bfloat16):
            made = module(x)
        (made.c5 if hasattr(made, "c5") else made).float().sum().backward()

    seconds = best_of(rounds, {"product": lambda: both_ways(passes[0]), "convolution": lambda: both_ways(passes[1])})
    ratio = seconds["convolution"] / seconds["product"]
    shown = ", ".join(f"{what} {1e3 * value:.2f} ms" for what, value in seconds.items())
    print(f"small_maps {ratio:.2f}   {name}: {shown}", flush=True)


def as_convolutions(module: nn.Module) -> nn.Module:
    """A copy in which every layer is torch's convolution."""
    theirs = copy.deepcopy(module)
    for layer in theirs.modules():
        if type(layer) is SmallMapConv2d:
            layer.__class__ = nn.Conv2d
    return theirs


if __name__ == "__main__":
    sys.exit(main())
