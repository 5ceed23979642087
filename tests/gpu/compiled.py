"""The parts `compile` and `warmcompile`: torch.compile of the backbones; `warm` as argument: only fill its cache.

A dry day traces and makes no code: that takes minutes, and tests/train/engine/test_step.py does it on the CPU.
"""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch._dynamo.utils import counters

from tests.gpu.device import CUDA, DEVICE, timed, wait
from tests.gpu.places import DRY
from tests.gpu.telling import check
from tests.gpu.trainer import Trainer, fits, settings_of
from train.engine.build import compile_backbones

BATCHES = (16,) if DRY else (256, 128, 32)  # the largest that fits


def main(*, timing: bool) -> None:
    batch = next((one for one in BATCHES if fits(settings_of(one))), BATCHES[-1])
    with check(f"compiled step of {batch}") as c:
        c.update(batch=batch, device=DEVICE.type)
        trainer = Trainer(settings_of(batch, 128))
        with patch.object(torch, "compile", partial(torch.compile, backend="eager")) if DRY else nullcontext():
            compile_backbones(trainer.model)
        began = time.perf_counter()
        trainer.step()
        wait()
        c["first_step_s"] = round(time.perf_counter() - began, 1)
        trainer.step()
        if timing:
            seconds = timed(trainer.step, warm=3, times=8)
            c["ms"], c["images_s"] = round(seconds * 1e3, 2), round(batch / seconds, 1)
            c["gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if CUDA else None
        c["graph_breaks"], c["recompiles"] = sum(counters["graph_break"].values()), dict(counters["stats"])


if __name__ == "__main__":
    main(timing=sys.argv[1:] != ["warm"])
