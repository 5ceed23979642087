"""Batches on the device: every way of decoding and augmenting gives the same pixels within what is stated."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data import device as device_module
from train.data.device import LocalBatch, ahead, device_batches, end_of_queue, to_device
from train.data.loader import host_batches
from train.data.shards.open import open_shards
from train.data.shards.reader import ShardReader
from train.r2o.model import Batch

CPU = torch.device("cpu")


def settings_of(**data: object) -> PretrainSettings:
    fixed = {"image_size": 32, "view_size": 32, "num_workers": 0, "verify": False}
    return PretrainSettings.model_validate(
        {
            "epochs": 2,
            "global_batch_size": 16,
            "data": {**fixed, **data},
            "augment": {"blur_kernel_size": 3},
            "refine": {"clustering_group_size": 4},
            "curriculum": {"hold_epochs": 0},
        }
    )


def local_batches(shards: Path, *, steps: range = range(3), **data: object) -> list[LocalBatch]:
    settings = settings_of(**data)
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    return list(device_batches(host_batches(reader, settings, steps, rank=0, num_ranks=1), settings, CPU))


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 1])
def test_decoding_on_the_device_gives_the_host_s_pixels(shards: Path, workers: int) -> None:
    for on_host, on_device in zip(
        local_batches(shards, num_workers=workers),
        local_batches(shards, num_workers=workers, decode="device"),
        strict=True,
    ):
        assert on_device.host.images is None
        assert on_device.host.sample_id.tolist() == on_host.host.sample_id.tolist()
        torch.testing.assert_close(on_device.batch.images, on_host.batch.images, atol=0.02, rtol=0)  # one level of 255
        torch.testing.assert_close(on_device.batch.views, on_host.batch.views, atol=0.15, rtol=0)
        for name in ("superpixels", "crop_box", "flipped"):
            assert torch.equal(getattr(on_device.batch, name), getattr(on_host.batch, name))


def test_augmenting_on_the_host_gives_the_device_s_pixels_rounded(shards: Path) -> None:
    for device, host in zip(local_batches(shards), local_batches(shards, augment="host"), strict=True):
        assert host.host.views.dtype == torch.uint8
        assert (device.batch.views - host.batch.views).abs().max() <= 0.5 / 255 / 0.224 + 1e-4


def test_a_thread_ahead_keeps_order_and_ends_with_its_loop() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    assert list(ahead(items(), size=3)) == list(range(1000))
    made.clear()
    before = threading.active_count()
    taken = ahead(items())
    assert [next(taken), next(taken)] == [0, 1]
    taken.close()
    assert len(made) <= 5
    assert threading.active_count() == before


def test_an_error_in_the_thread_is_the_consumer_s() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise InputError("shard 7 is damaged")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(InputError, match="shard 7 is damaged"):
        next(items)


def test_what_is_normalised_is_the_host_s_image(shards: Path) -> None:
    (one,) = local_batches(shards, steps=range(1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (one.host.images.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(one.batch.images, expected, atol=1e-5, rtol=1e-5)
    assert to_device(one.host, settings_of(), CPU).superpixels.dtype == torch.int32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("decode", ["host", "device"])
def test_cuda_gives_the_cpu_s_batches(shards: Path, decode: str) -> None:
    settings = settings_of(decode=decode, num_workers=1)
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    hosts = list(host_batches(reader, settings, range(3), rank=0, num_ranks=1, pin_memory=True))
    there = list(device_batches(iter(hosts), settings, torch.device("cuda")))
    for cuda, cpu in zip(there, device_batches(iter(hosts), settings, CPU), strict=True):
        given = [name for name, value in cpu.batch._asdict().items() if value is not None]
        assert given == ["images", "superpixels", "views", "crop_box", "flipped"]  # no further maps were asked for
        assert [name for name, value in cuda.batch._asdict().items() if value is not None] == given
        for ours, theirs in ((getattr(batch, name) for batch in (cuda.batch, cpu.batch)) for name in given):
            assert ours.device.type == "cuda"
            assert (ours.cpu().float() - theirs.float()).abs().mean() < (1e-4 if decode == "host" else 0.02)


class FakeCuda:
    """Threads each have a current device, 0 at first; streams and events note in which order they are used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of_thread = threading.local()
        self.calls: list[tuple[object, ...]] = []
        for name in ("set_device", "Stream", "stream", "Event", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.accelerator, "current_device_index", self.current_device)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, s: self.note("memory is of", s.name))
        monkeypatch.setattr(device_module, "to_device", lambda *_: self.note("made") or self.batch())

    def note(self, *what: object) -> None:
        self.calls.append((*what, self.current_device()))

    def current_device(self) -> int:
        return getattr(self.of_thread, "device", 0)

    def set_device(self, device: torch.device) -> None:
        self.of_thread.device = device.index

    def batch(self) -> Batch:
        zero = torch.zeros(1)
        return Batch(zero, zero, zero, zero, zero)

    def Stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name="side stream", device=device)

    def stream(self, stream: SimpleNamespace) -> AbstractContextManager[None]:
        return nullcontext()

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        waits = lambda event: self.note("computing waits for", event.of)  # noqa: E731
        return SimpleNamespace(name=f"stream of {device}", device=device, wait_event=waits)

    def Event(self, *, enable_timing: bool) -> SimpleNamespace:
        event = SimpleNamespace(of=None, timed=enable_timing)

        def record(stream: SimpleNamespace) -> None:
            event.of = stream.name
            self.note("event of", stream.name)

        event.record = record
        return event


def test_the_thread_takes_the_rank_s_gpu_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device = FakeCuda(monkeypatch), torch.device("cuda", 3)
    fake.set_device(device)  # as `world` does in the main thread

    def hosts() -> Iterator[SimpleNamespace]:
        for _ in range(2):
            fake.note("loaded in", threading.current_thread() is threading.main_thread())
            yield SimpleNamespace(jpegs=None)

    first, second = device_batches(hosts(), settings_of(), device)
    assert {call[-1] for call in fake.calls} == {3}
    assert ("loaded in", False, 3) in fake.calls
    assert [call for call in fake.calls if call[0] in ("loaded in", "made", "event of")] == 2 * [
        ("loaded in", False, 3),
        ("made", 3),
        ("event of", "side stream", 3),
    ]
    waits = [call for call in fake.calls if call[0] in ("computing waits for", "memory is of")]
    assert waits == 2 * [("computing waits for", "side stream", 3), *5 * [("memory is of", "stream of cuda:3", 3)]]
    assert first.ready.timed
    assert first.ready is not second.ready
    end = end_of_queue(device)
    assert (end.of, end.timed) == ("stream of cuda:3", True)
    assert end_of_queue(CPU) is None


@pytest.mark.processes
def test_the_thread_that_pins_gets_the_rank_s_gpu(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, device, given = FakeCuda(monkeypatch), torch.device("cuda", 3), []

    def pin(batches: Any, pinned: Any, device_index: int, done: threading.Event, *_: object) -> None:
        given.append(device_index)
        while not done.is_set():
            with suppress(Empty):
                pinned.put(batches.get(timeout=0.05))

    monkeypatch.setattr("torch.utils.data._utils.pin_memory._pin_memory_loop", pin)
    settings = settings_of(num_workers=1)
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    hosts = host_batches(reader, settings, range(2), rank=0, num_ranks=1, pin_memory=True)
    assert fake.current_device() == 0  # and stays so here: only the thread's own device decides
    assert len(list(device_batches(hosts, settings, device))) == 2
    assert given == [3]


@pytest.mark.processes
def test_workers_that_hang_are_one_line_and_do_not_stay(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stop themselves, after which they heed no SIGTERM, like one that reads from a disk that is gone."""
    monkeypatch.setattr(ShardReader, "read", lambda self, *_: os.kill(os.getpid(), signal.SIGSTOP))
    monkeypatch.setattr(device_module, "END_SECONDS", 6.0)  # torch looks after its workers every 5
    settings = settings_of(num_workers=2)
    run = settings.run.model_copy(update={"collective_timeout_minutes": 0.02})
    settings = settings.model_copy(update={"run": run})
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    hosts = host_batches(reader, settings, range(3), rank=0, num_ranks=1)
    with pytest.raises(InputError, match=r"no batch came within pretrain\.run\.collective_timeout_minutes 0\.02: "):
        next(device_batches(hosts, settings, CPU))
    for process in multiprocessing.active_children():
        process.join(60)
    assert multiprocessing.active_children() == []


def test_a_thread_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "END_SECONDS", 0.05)
    goes_on = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        goes_on.wait()

    taken = ahead(items())
    assert next(taken) == 0
    taken.close()  # as a run does that was asked to stop
    taken = ahead(items(), seconds=0.05, otherwise="it hangs")
    assert next(taken) == 0
    with pytest.raises(InputError, match="it hangs"):
        next(taken)
    goes_on.set()
