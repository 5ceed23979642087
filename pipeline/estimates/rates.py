"""How fast ResNet-50 is trained on accelerators, as others have published it. Nothing here is a measurement of r2o.

All rates are of one program, so that they can be compared: NVIDIA's DeepLearningExamples, ResNet-50 v1.5, PyTorch, one
GPU, run by Lambda Labs. They lie in `pytorch/pytorch-train-throughput-fp16.csv` and `…-fp32.csv`, column resnet50, and
batch sizes in `pytorch-train-bs-….csv`, of github.com/lambdal/deeplearning-benchmark at aa5addb (2025-12-17); rows
"LambdaCloud V100 16GB", "RTX 3090", "RTX 4090", "A100 80GB SXM4" and "H100 80GB SXM5". What is fp32 there is TF32 from
Ampere on. NVIDIA itself names 2,470 images/s for an A100 in mixed precision (README of that program, container 21.03).
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE = "github.com/lambdal/deeplearning-benchmark"
BACKBONE = "resnet50"  # that it is of
PASSES = 3  # forward passes that a step of supervised training costs: its own, and two for the backward pass


class Published(NamedTuple):
    """Images a second of supervised training at 224 px, the batch that it is of, and the dense peak in TFLOP/s."""

    images_per_second: float
    batch_size: int
    peak: float


# By accelerator and precision. Half precision was measured as fp16; from Ampere on, bf16 has the same peak.
RATES: dict[str, dict[str, Published]] = {
    "V100": {"fp16": Published(833, 256, 125), "fp32": Published(369, 128, 15.7)},
    "RTX 3090": {"fp16": Published(905, 448, 71), "bf16": Published(905, 448, 71), "tf32": Published(513, 224, 35.6)},
    "RTX 4090": {
        "fp16": Published(1301, 448, 165),
        "bf16": Published(1301, 448, 165),
        "tf32": Published(721, 224, 82.6),
    },
    "A100": {"fp16": Published(1582, 1280, 312), "bf16": Published(1582, 1280, 312), "tf32": Published(1066, 640, 156)},
    "H100": {"fp16": Published(2616, 1280, 989), "bf16": Published(2616, 1280, 989), "tf32": Published(1753, 640, 495)},
}


def reached(published: Published, forward_macs: float) -> float:
    """Floating-point operations a second, counted as the estimate counts them: a multiply-add is two."""
    return published.images_per_second * PASSES * 2 * forward_macs
