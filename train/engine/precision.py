"""`run.precision: auto`, settled before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch

from train.config.pretrain import PretrainSettings
from train.run.folder import read_record

NATIVE_CAPABILITY = (8, 0)  # Ampere, the first CUDA devices that multiply bf16


class NativePrecision(NamedTuple):
    """What a machine computes fast, and by which of its features."""

    precision: Literal["bf16", "fp32"]
    because: str


def native_precision() -> NativePrecision:
    """bf16 where all visible GPUs, or without any the processor, multiply it in hardware; else fp32.

    oneDNN computes bf16 by AVX512-BF16 or AMX. Without them it widens every number first, and fp32 is faster.
    """
    if torch.cuda.is_available():
        capability = min(torch.cuda.get_device_capability(gpu) for gpu in range(torch.cuda.device_count()))
        precision: Literal["bf16", "fp32"] = "bf16" if capability >= NATIVE_CAPABILITY else "fp32"
        return NativePrecision(precision, f"CUDA capability {capability[0]}.{capability[1]}; 8.0 and above have bf16")
    there = {"avx512_bf16": torch.cpu._is_avx512_bf16_supported(), "AMX": torch.cpu._is_amx_tile_supported()}
    if has := [name for name, found in there.items() if found]:
        return NativePrecision("bf16", f"the processor has {' and '.join(has)}")
    return NativePrecision("fp32", f"the processor has neither {' nor '.join(there)}, and bf16 would be slower")


def settle_precision(settings: PretrainSettings, run: Path) -> tuple[PretrainSettings, str]:
    """The settings without `auto`, and what is to be said of it; empty where there was nothing to settle.

    A run that has begun goes on with the precision that it began with, on whatever machine.

    Raises:
        InputError: `run` has a record that cannot be read.
    """
    if settings.run.precision != "auto":
        return settings, ""
    native, record = native_precision(), read_record(run)
    begun = record["starts"][-1].get("precision") if record and record["starts"] else None
    precision, because = (begun, "as this run began") if begun else native
    if begun and begun != native.precision:
        because += f"; a new run would take {native.precision} here: {native.because}"
    changed = settings.run.model_copy(update={"precision": precision})
    return settings.model_copy(update={"run": changed}), f"precision auto: {precision} ({because})"
