"""Copies of a state: taken in the queue, waited for by whoever reads them, in memory that is used again."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.engine.test_checkpoint import trained
from train.engine.checkpoint import Checkpoints, checkpoints, read_checkpoint
from train.run import host_copy
from train.run.host_copy import HostCopies


class Queue:
    """A GPU's, as far as copies see it: what is put in happens when somebody waits, with the values of before."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Tensor, Tensor]] = []
        self.pinned: list[Tensor] = []
        self.waited_in: list[str] = []

    def pin(self, value: Tensor) -> Tensor:
        self.pinned.append(torch.full_like(value, -7))
        return self.pinned[-1]

    def put(self, into: Tensor, value: Tensor) -> None:
        self.waiting.append((into, value.clone()))

    def mark(self, device: torch.device) -> Callable[[], None]:
        mine, self.waiting = self.waiting, []

        def wait() -> None:
            self.waited_in.append(threading.current_thread().name)
            for into, value in mine:
                into.copy_(value)

        return wait


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    made = Queue()
    monkeypatch.setattr(host_copy, "is_on_gpu", lambda value: True)
    monkeypatch.setattr(host_copy, "pinned_like", made.pin)
    monkeypatch.setattr(host_copy, "queue_copy", made.put)
    monkeypatch.setattr(host_copy, "queued_until_now", made.mark)
    return made


def test_copies_are_of_the_moment_and_are_there_once_waited_for(queue: Queue) -> None:
    state = {"a": torch.arange(3), "b": [torch.ones(2, 2), {"c": torch.zeros(1)}], "step": 7}
    copied, wait = HostCopies().take(state)
    state["a"] += 10  # type: ignore[operator]
    assert copied["a"].tolist() == [-7, -7, -7]
    wait()
    assert (copied["a"].tolist(), copied["step"]) == ([0, 1, 2], 7)
    assert copied["b"][0].tolist() == [[1, 1], [1, 1]]
    assert copied["b"][1]["c"].tolist() == [0]


def test_memory_is_pinned_once_and_again_where_the_form_is_another(queue: Queue) -> None:
    copies, state = HostCopies(), {"a": torch.zeros(3), "b": [torch.zeros(2, 3, 4, 4)]}
    first = copies.take(state)[0]
    second = copies.take(state)[0]
    assert second["a"] is first["a"]
    assert len(queue.pinned) == 2
    state["b"] = [torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]
    third = copies.take(state)[0]
    assert third["b"][0].stride() == state["b"][0].stride()
    assert (third["a"] is first["a"], len(queue.pinned)) == (True, 3)
    state["a"] = torch.zeros(3, dtype=torch.float64)
    assert copies.take(state)[0]["a"].dtype == torch.float64


def test_a_checkpoint_is_written_once_its_copies_are_there_and_not_waited_for_before(
    queue: Queue, tmp_path: Path, shallow: None
) -> None:
    saved, training = Checkpoints(tmp_path, fingerprint="f", keep=2), trained(1)
    expected = {name: value.clone() for name, value in training.model.state_dict().items()}
    saved.save(training, step=1)
    for value in training.model.state_dict().values():
        value.zero_()  # the next update
    saved.wait()
    assert queue.waited_in == ["checkpoint_0"]
    (path,) = checkpoints(tmp_path)
    found = read_checkpoint(path)["model"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    saved.save(training, step=2)
    saved.wait()
    assert len(queue.pinned) == len({id(one) for one in saved._copies._kept.values()})
    assert not any(value.any() for value in read_checkpoint(checkpoints(tmp_path)[-1])["model"].values())


def test_on_a_cpu_nothing_is_queued_and_every_copy_is_new() -> None:
    copies, value = HostCopies(), torch.arange(3)
    (first, wait), (second, _) = copies.take(value), copies.take(value)
    value += 1
    wait()
    assert first.tolist() == second.tolist() == [0, 1, 2]
    assert first.data_ptr() != second.data_ptr()
    assert copies._kept == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_taking_waits_for_nothing_and_an_update_after_it_is_not_in_it() -> None:
    copies = HostCopies()
    state = {str(i): torch.full((1 << 18,), float(i), device="cuda") for i in range(50)}
    copies.take(state)[1]()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copied, wait = copies.take(state)
        for value in state.values():
            value.add_(1000)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wait()
    assert all(value.is_pinned() for value in copied.values())
    assert all(bool((copied[str(i)] == i).all()) for i in range(50))
