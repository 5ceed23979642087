"""The part `ops`: operators, batches and steps on the device, against the CPU and against themselves."""

from __future__ import annotations

import torch

from tests.gpu import batches, refinement, steps


def main() -> None:
    torch.manual_seed(0)
    refinement.checks()
    batches.checks()
    steps.checks()


if __name__ == "__main__":
    main()
