"""The part `input`: workers, pinning, copies and augmentation, with nobody computing; whether `data_wait` is true."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from tests.gpu.device import CUDA, DEVICE, timed, wait
from tests.gpu.places import CORES, DRY
from tests.gpu.telling import check
from tests.gpu.trainer import hosts_of, settings_of
from train.data.device import device_batches, end_of_queue
from train.data.loader import HostBatch
from train.run.clock import StepClock

BATCH, STEPS = (16, 3) if DRY else (128, 60)
WARM = min(10, STEPS - 2)  # batches before the clock starts


def main() -> None:
    for decode in ("host", "device"):
        with check(f"input alone, {decode} decodes") as c:
            c["images_s"] = round(images_a_second(decode), 1)
    if CUDA:
        with check("data_wait, a batch every 60 ms and more, steps of 15 ms") as c:
            c.update(waited(loader=0.06, step=0.015))
            c["ok"] = abs(c["data_wait"] - c["true"]) < 0.05 and c["true"] > 0.5
        with check("data_wait, batches at once, steps of 60 ms, a host that does not wait for them") as c:
            c.update(waited(loader=0.0, step=0.06))
            c["ok"] = c["data_wait"] < 0.02


def images_a_second(decode: str) -> float:
    data = {"num_workers": max(1, CORES - 1), "decode": decode, "prefetch_batches": 2}
    settings = settings_of(BATCH, epochs=STEPS + 1, data=data)
    began, taken = 0.0, 0
    for number, local_batch in enumerate(device_batches(hosts_of(settings, STEPS, pin=True), settings, DEVICE)):
        if number == WARM:
            wait()
            began, taken = time.perf_counter(), 0
        else:
            taken += len(local_batch.host.sample_id)
    wait()
    return taken / max(time.perf_counter() - began, 1e-9)


def waited(*, loader: float, step: float) -> dict[str, float]:
    """The share that the clock tells, and the one that is left over by what the device computed.

    Args:
        loader: seconds before each batch.
        step: seconds that the device computes on each.
    """
    settings = settings_of(16)
    hosts = list(hosts_of(settings, 12, pin=True))
    cycles = int(step / timed(lambda: torch.cuda._sleep(10**7)) * 10**7)

    def slow() -> Iterator[HostBatch]:
        for host in hosts:
            time.sleep(loader)
            yield host

    for _ in device_batches(iter(hosts[:2]), settings, DEVICE):  # kernels are loaded before the clock starts
        wait()
    clock = StepClock(mark=partial(end_of_queue, DEVICE))
    steps = 0
    for _ in clock.waiting(device_batches(slow(), settings, DEVICE), lambda local_batch: local_batch.ready):
        torch.cuda._sleep(cycles)
        steps += 1
    wait()
    elapsed, share = clock.elapsed, clock.data_wait
    return {"data_wait": round(share, 4), "true": round(1 - steps * step / elapsed, 4)}


if __name__ == "__main__":
    main()
