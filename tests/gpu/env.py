"""The part `env`: versions, memory, imports, the GPU, and what of it a step cannot exceed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from tests.gpu.device import CUDA, DEVICE, matmul_in_tf32, timed
from tests.gpu.places import CORES, DRY, ROOT
from tests.gpu.telling import check, tell

PACKAGES = (
    "torch torchvision triton numpy pydantic pydantic_core webdataset simplejpeg tensorboardX fast_slic beartype "
    "jaxtyping fsspec safetensors pillow scikit-learn pytest protobuf"
)
SHARED_MEMORY = Path("/dev/shm")


def main() -> None:
    tell("code", date=datetime.now(UTC).date().isoformat(), commit=said_by("git", "describe", "--always", "--dirty"))
    tell("versions", python=platform.python_version(), cores=CORES, machine=platform.platform(), **versions())
    tell(
        "memory",
        host_gb=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        shm_gb=shutil.disk_usage(SHARED_MEMORY).total / 1e9 if SHARED_MEMORY.is_dir() else None,
    )
    with check("imports") as c:
        assert callable(import_module("train.pretrain").main)
        assert callable(import_module("torchvision.io").decode_jpeg)
        c["ray"], c["fast_slic"] = "ray" in sys.modules, "fast_slic" in sys.modules
        c["ok"] = not (c["ray"] or c["fast_slic"])  # the trainer needs neither
    if CUDA or not DRY:
        gpu()
    ceilings()


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def said_by(*command: str) -> str | None:
    """What a program prints; None where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def gpu() -> None:
    with check("gpu") as c:
        p = torch.cuda.get_device_properties(0)
        c["name"], c["sms"], c["gib"] = p.name, p.multi_processor_count, round(p.total_memory / 2**30, 1)
        c["cuda"], c["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        c["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        c["count"] = torch.cuda.device_count()
        driver = said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        c["driver"] = driver.splitlines()[0] if driver else None


def ceilings() -> None:
    with check("ceilings") as c:
        n, size = (256, 2**22) if DRY else (8192, 2**30)
        a = torch.empty(size, dtype=torch.uint8, device=DEVICE).random_()
        b = torch.empty_like(a)
        c["copy_tb_s"] = round(2 * size / timed(lambda: b.copy_(a)) / 1e12, 3)
        kinds = (("bf16", torch.bfloat16, False), ("fp32", torch.float32, False), ("tf32", torch.float32, True))
        for name, dtype, tf32 in kinds:
            with matmul_in_tf32(tf32):
                x, y = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
                c[f"{name}_tflops"] = round(2 * n**3 / timed(partial(torch.matmul, x, y), times=5) / 1e12, 1)
        small = torch.zeros(8, device=DEVICE)
        count = 100 if DRY else 5000
        c["launch_us"] = round(timed(lambda: [small.add_(1) for _ in range(count)], times=3) / count * 1e6, 2)
        pinned = torch.empty(2**20 if DRY else 2**27, dtype=torch.uint8, pin_memory=CUDA)
        c["h2d_gb_s"] = round(pinned.numel() / timed(lambda: pinned.to(DEVICE, non_blocking=True)) / 1e9, 2)


if __name__ == "__main__":
    main()
