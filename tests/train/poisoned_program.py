"""A rank of a run whose second rank meets a view that is not a number, in its fourth batch."""

import os
import sys
from collections.abc import Iterator

import torch

from pipeline.foundation.errors import exit_code_of
from train import pretrain
from train.data.device import LocalBatch, device_batches
from train.engine import loop


def poisoned(*arguments) -> Iterator[LocalBatch]:
    for number, local_batch in enumerate(device_batches(*arguments)):
        if number == 3 and os.environ["RANK"] == "1":
            local_batch.batch.views[1, 0, 0, 5, 5] = torch.nan
        yield local_batch


if __name__ == "__main__":
    loop.device_batches = poisoned
    sys.exit(exit_code_of(pretrain.main))
