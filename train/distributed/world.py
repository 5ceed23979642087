"""The process group of a job: how ranks meet, and what is said when one is lost."""

from __future__ import annotations

import atexit
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from pipeline.foundation.errors import InputError
from pipeline.foundation.exit_codes import EXIT_FAILED, EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_REQUEUE
from pipeline.foundation.progress import say
from pipeline.foundation.this_rank import this_rank
from train.distributed.environment import local_gpu, num_ranks
from train.distributed.watch import BEAT, Loss, RankWatch, leave_now

ENDING = 60.0  # seconds that taking the process group apart may take


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and talks."""
        return self.rank == 0


@contextmanager
def world_from_environment(*, timeout_minutes: float = 10.0) -> Iterator[World]:
    """The process group that torchrun's variables describe (NCCL with a GPU, gloo without), or a world of one.

    Args:
        timeout_minutes: a collective that takes longer fails.
    Raises:
        InputError: a node has fewer GPUs than processes, or the others do not come.
        LostRankError: a collective failed within. Where none can fail, the process ends with the same line, by itself.
    """
    size, device = num_ranks(), _device()
    if size == 1:
        yield World(0, 1, device)
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise InputError(f"WORLD_SIZE is {size}, but {name} is not set; start the ranks with torchrun or srun")
    rank, cuda, timeout = this_rank(), device.type == "cuda", timedelta(minutes=timeout_minutes)
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = _store_of_this_start(rank, size, timeout)
        watch = RankWatch(rank, size, store, address=address, seconds=timeout.total_seconds())
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
            device_id=device if cuda else None,
        )
    except dist.DistStoreError as error:
        raise InputError(
            f"rank {rank} waited {timeout_minutes:g} minutes for the others at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')} ({str(error).partition('.')[0]})"
        ) from None
    except dist.DistNetworkError as error:
        raise InputError(
            f"rank {rank} cannot meet the others at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} "
            f"({str(error).partition('. ')[0].strip()}); give another MASTER_ADDR or MASTER_PORT"
        ) from None
    watch.look_at(_fault_of(device, timeout_minutes))
    try:
        yield World(rank, size, device)
        dist.barrier()
    except BaseException as error:
        told = _told(error, watch, rank)
        if told is error:
            raise
        raise told from error
    watch.close()
    with _ended_within(ENDING, rank):
        dist.destroy_process_group()


def _told(error: BaseException, watch: RankWatch, rank: int) -> BaseException:
    """What to raise in place of an error, of which the others have been told; this process ends without waiting.

    The process group is left as it is, for NCCL takes it apart together with the others. They may never do so.
    """
    loss = Loss(EXIT_FAILED, f"{type(error).__name__}: {error}".partition("\n")[0])
    if isinstance(error, RuntimeError) and _is_of_collective(error):
        found = watch.loss(within=2 * BEAT)
        loss = found or Loss(EXIT_FAILED, "a collective failed there")
        error = LostRankError(rank, str(error), found.text if found else watch.silence(), code=loss.code)
    elif isinstance(error, InputError):
        loss = Loss(EXIT_INPUT_ERROR, str(error))
    elif isinstance(error, KeyboardInterrupt):
        loss = Loss(EXIT_INTERRUPTED, "it was interrupted")
    elif not isinstance(error, Exception):
        loss = Loss(EXIT_REQUEUE, "it was asked to stop")
    watch.close(loss)
    atexit.register(leave_now, loss.code)
    return error


def _fault_of(device: torch.device, minutes: float) -> Callable[[], str | None]:
    """What tells that a collective of NCCL has failed; gloo raises it where it was called.

    NCCL's watchdog notes an error, waits for a minute, and then aborts the process.
    """
    if device.type != "cuda":
        return lambda: None
    backend = dist.distributed_c10d._get_default_group()._get_backend(device)

    def fault() -> str | None:
        said: str = backend.get_error().name
        if said == "SUCCESS":
            return None
        slow = f"a collective took longer than {minutes:g} minutes, so one of them hangs"
        return slow if said == "TIMEOUT" else f"a collective failed, and NCCL's own message says why ({said})"

    return fault


@contextmanager
def _ended_within(seconds: float, rank: int) -> Iterator[None]:
    """End the process where the block takes longer."""

    def leave() -> None:
        say(f"r2o: rank {rank}: all is done, but the process group did not end within {seconds:g} s")
        leave_now(EXIT_FAILED)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _store_of_this_start(rank: int, size: int, timeout: timedelta) -> Store:
    """Where the ranks meet; of torchrun's, a part that no earlier start has written to.

    The store of torchrun's agent outlives the ranks that it restarts, and what these left in it would be taken for the
    new ones' addresses; its count of restarts is not the same on all nodes. So the first rank names this start, and
    tells each other one by a token that only that process can have written.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return TCPStore(address, port, is_master=rank == 0, timeout=timeout)
    store, token = TCPStore(address, port, is_master=False, timeout=timeout), secrets.token_hex(8)
    if rank:
        store.set(f"r2o/hello/{rank}", token)
        name = store.get(f"r2o/welcome/{token}").decode()
        store.add(f"r2o/here/{name}", 1)
    else:
        name = token
        _welcome_others(store, name, size, timeout)
    return PrefixStore(f"r2o/{name}", store)


def _welcome_others(store: Store, name: str, size: int, timeout: timedelta) -> None:
    """Answer every rank's hello with the name of this start, also what dead ones left, until all are here."""
    answered: set[bytes] = set()
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(f"r2o/here/{name}", 0) < size - 1:
        if time.monotonic() > deadline:
            raise dist.DistStoreError("some never said hello")
        for key in (f"r2o/hello/{other}" for other in range(1, size)):
            if store.check([key]) and (hello := store.get(key)) not in answered:
                store.set(f"r2o/welcome/{hello.decode()}", name)
                answered.add(hello)
        time.sleep(0.02)


class LostRankError(Exception):
    """A collective failed: another rank died, hangs, or its node cannot be reached.

    Args:
        found: which one, where that is known. code: the exit code that follows.
    """

    def __init__(self, rank: int, cause: str, found: str | None = None, *, code: int = EXIT_FAILED) -> None:
        self.code = code
        text = re.sub(r"^\[[^\]]*\] ", "", cause.strip().splitlines()[0]).partition(". ")[0]
        found = found or "one of them has died or hangs, and its own message says why"
        super().__init__(f"rank {rank} lost the others: {found} ({text})")


def _is_of_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def _device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    gpu = local_gpu(visible)
    if gpu >= visible:
        raise InputError(f"process {gpu} of this node has no GPU, {visible} are visible; start fewer processes")
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)
