"""Memory that was not there, as one line that says what was being done, how much there is, and what to turn."""

from __future__ import annotations

import errno
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

import torch

from pipeline.foundation.errors import InputError
from pipeline.foundation.exit_codes import EXIT_INPUT_ERROR
from pipeline.foundation.progress import say
from train.distributed.world import World

# torch.OutOfMemoryError aside: of CUDA's own calls, cuDNN and cuBLAS; of torch's CPU allocator, C++ and the kernel.
GPU_TEXTS = re.compile(r"CUDA out of memory|CUDA error: out of memory|STATUS_ALLOC_FAILED")
HOST_TEXTS = re.compile(r"DefaultCPUAllocator|bad_alloc|Cannot allocate memory|not enough memory")
ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
MAIN_SPEAKS_FIRST = 2.0  # seconds; as a rule all ranks lack the same


class Lack(NamedTuple):
    """Which memory was not there.

    Attributes:
        asked: bytes that the allocation was for, where it says so.
        of_worker: it was a process of a DataLoader that lacked it, or was killed.
    """

    memory: Literal["GPU", "host"]
    asked: float | None = None
    of_worker: bool = False


class NoMemoryError(InputError):
    """Memory is not there. The line names what was being done and the settings to turn."""


def lack_of(error: BaseException) -> Lack | None:
    """What memory an error says is missing; None where it says something else."""
    text = str(error)
    of_worker = "DataLoader worker" in text
    asked = ASKED.search(text)
    size = float(asked[1]) * UNITS[asked[2]] if asked else None
    if isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and GPU_TEXTS.search(text)):
        return Lack("GPU", size)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return Lack("host", size, of_worker)
    if isinstance(error, RuntimeError):
        killed = of_worker and ("killed by signal" in text or "exited unexpectedly" in text)
        return Lack("host", size, of_worker) if killed or HOST_TEXTS.search(text) else None
    return None


@contextmanager
def memory_errors_named(doing: str, what_to_turn: Callable[[Lack], str], device: torch.device) -> Iterator[None]:
    """Turn a lack of memory in the block into NoMemoryError, with one line. What its calls held is free by then.

    Args:
        doing: what the block does, for people.
        what_to_turn: the settings, those that help most first.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        lack = lack_of(error)
        if lack is None:
            raise
        traceback.clear_frames(error.__traceback__)  # their tensors: ranks may still have to tell each other
        raise NoMemoryError(f"{doing}: {_said(lack, device)}; {what_to_turn(lack)}") from None


def _said(lack: Lack, device: torch.device) -> str:
    figures = [f"{_gb(lack.asked)} more asked for"] if lack.asked else []
    if lack.memory == "GPU" and device.type == "cuda":
        with suppress(RuntimeError):  # a device that is in no state to tell
            free, total = torch.cuda.mem_get_info(device)
            figures.insert(0, f"{_gb(total - free)} of {_gb(total)} in use")
    who = "a process that reads images is out of" if lack.of_worker else "out of"
    told = f" ({', '.join(figures)})" if figures else ""
    return f"{who} {lack.memory} memory{told}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


@contextmanager
def alone_without_memory(world: World) -> Iterator[None]:
    """Where one rank of several lacks memory, let it say so and end this process where it is.

    The others wait for it in a collective. An end in good order would wait for them in turn, with NCCL.
    What is on disk is whole after a kill, and so after this.
    """
    try:
        yield
    except NoMemoryError as error:
        if world.size == 1:
            raise
        if not world.is_main:
            time.sleep(MAIN_SPEAKS_FIRST)
        say(f"r2o: error: {'' if world.is_main else f'rank {world.rank}: '}{error}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INPUT_ERROR)
