"""What counts as a lack of memory, and the line that is made of it: errors that torch, NumPy and the kernel raise."""

import errno
import resource
import subprocess
import sys
import traceback
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from train.distributed.world import World
from train.out_of_memory import Lack, NoMemoryError, alone_without_memory, lack_of, memory_errors_named

CPU = torch.device("cpu")
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.02 GiB is free."
)


def raised_by(work) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        work()
    return caught.value


def test_what_torch_and_numpy_raise_on_a_cpu() -> None:
    assert lack_of(raised_by(lambda: torch.empty(2**60, dtype=torch.uint8))) == Lack("host", 2.0**60)
    assert lack_of(raised_by(lambda: np.empty(2**60, dtype=np.uint8))) == Lack("host")
    assert lack_of(raised_by(lambda: bytearray(2**62))) == Lack("host")


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (torch.OutOfMemoryError(CUDA_TEXT), Lack("GPU", 1.5 * 2**30)),
        (torch.OutOfMemoryError("Tried to allocate 20.00 MiB"), Lack("GPU", 20 * 2**20)),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be…"), Lack("GPU")),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), Lack("GPU")),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Lack("GPU")),
        (RuntimeError("std::bad_alloc"), Lack("host")),
        (RuntimeError("unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)"), Lack("host")),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Lack("host")),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), Lack("host", of_worker=True)),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), Lack("host", of_worker=True)),
        (RuntimeError("Caught ValueError in DataLoader worker process 0."), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_counts(error: BaseException, lack: Lack | None) -> None:
    assert lack_of(error) == lack


def test_the_line_of_a_gpu_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(1e9), int(25e9)))
    turn = lambda lack: f"lower {lack.memory}"  # noqa: E731
    with (
        pytest.raises(NoMemoryError) as caught,
        memory_errors_named("step 7", turn, torch.device("cuda", 0)),
    ):
        raise torch.OutOfMemoryError(CUDA_TEXT)
    line = "step 7: out of GPU memory (24 GB of 25 GB in use, 1.61 GB more asked for); lower GPU"
    assert str(caught.value) == line
    assert "Tried" not in "".join(traceback.format_exception(caught.value))


def test_a_gpu_that_cannot_tell_costs_the_figures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    with (
        pytest.raises(NoMemoryError, match=r"^step 7: out of GPU memory; lower it$"),
        memory_errors_named("step 7", lambda lack: "lower it", torch.device("cuda", 0)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")


def test_what_lacks_no_memory_passes_as_it_is() -> None:
    error = RuntimeError("another fault")
    with pytest.raises(RuntimeError) as caught, memory_errors_named("step 7", lambda lack: "", CPU):
        raise error
    assert caught.value is error


def test_the_innermost_says_what_was_being_done() -> None:
    with (
        pytest.raises(NoMemoryError, match=r"^inner: out of host memory; lower it$"),
        memory_errors_named("outer", lambda lack: "no", CPU),
        memory_errors_named("inner", lambda lack: "lower it", CPU),
    ):
        raise MemoryError


def test_what_the_calls_held_is_free_for_what_ranks_tell_each_other() -> None:
    held = []

    def fill() -> None:
        tensor = torch.zeros(1000)
        held.append(weakref.ref(tensor))
        torch.empty(2**60, dtype=torch.uint8)

    try:
        with memory_errors_named("step 7", lambda lack: "lower it", CPU):
            fill()
    except NoMemoryError:
        assert held[0]() is None


class _Large(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.empty(2**60, dtype=torch.uint8) if index == 0 else torch.zeros(1)


@pytest.mark.processes
def test_a_worker_s_lack_of_memory_is_told_as_such() -> None:
    error = raised_by(lambda: next(iter(DataLoader(_Large(), batch_size=None, num_workers=1))))
    assert lack_of(error) == Lack("host", 2.0**60, of_worker=True)


LIMITED = """
import resource, sys, torch
from pipeline.foundation.errors import exit_code_of
from train.out_of_memory import memory_errors_named
network = torch.nn.Conv2d(3, 64, 3)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
def main():
    with memory_errors_named("step 7", lambda lack: "lower it", torch.device("cpu")):
        network(torch.zeros(64, 3, 224, 224))
sys.exit(exit_code_of(main))
"""


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS") or sys.platform != "linux", reason="limits memory as Linux does")
def test_a_pass_beyond_the_memory_that_a_process_may_have_is_one_line() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("r2o: error: step 7: out of host memory")
    assert line.endswith("; lower it")


def test_one_process_ends_in_good_order_and_a_rank_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    ended: list[int] = []
    monkeypatch.setattr("train.out_of_memory.time.sleep", slept.append)
    monkeypatch.setattr("train.out_of_memory.os._exit", ended.append)
    with pytest.raises(NoMemoryError), alone_without_memory(World(0, 1, CPU)):
        raise NoMemoryError("step 7")
    assert (slept, ended, capsys.readouterr().err) == ([], [], "")
    with alone_without_memory(World(0, 2, CPU)):
        raise NoMemoryError("step 7")
    assert (slept, ended, capsys.readouterr().err) == ([], [2], "r2o: error: step 7\n")
    with alone_without_memory(World(1, 2, CPU)):
        raise NoMemoryError("step 7")
    assert (slept, ended, capsys.readouterr().err) == ([2.0], [2, 2], "r2o: error: rank 1: step 7\n")
