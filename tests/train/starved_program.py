"""A rank of a run in which those of R2O_STARVED_RANKS cannot have the memory of their second step."""

import os
import sys
from collections.abc import Iterator

import torch

from pipeline.foundation.errors import exit_code_of
from train import pretrain
from train.data.device import LocalBatch, device_batches
from train.engine import loop


def starved(*arguments) -> Iterator[LocalBatch]:
    for number, local_batch in enumerate(device_batches(*arguments)):
        if number == 1 and os.environ["RANK"] in os.environ["R2O_STARVED_RANKS"].split():
            torch.empty(2**60, dtype=torch.uint8)
        yield local_batch


if __name__ == "__main__":
    loop.device_batches = starved
    sys.exit(exit_code_of(pretrain.main))
