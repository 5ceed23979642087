"""The part `input`: workers, pinning, copies and augmentation, with nobody computing."""

from __future__ import annotations

import time

from tests.gpu.device import DEVICE, wait
from tests.gpu.places import CORES, DRY
from tests.gpu.telling import check
from tests.gpu.trainer import hosts_of, settings_of
from train.data.device import device_batches

BATCH, STEPS = (16, 3) if DRY else (128, 60)
WARM = min(10, STEPS - 2)  # batches before the clock starts


def main() -> None:
    for decode in ("host", "device"):
        with check(f"input alone, {decode} decodes") as c:
            c["images_s"] = round(images_a_second(decode), 1)


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


if __name__ == "__main__":
    main()
