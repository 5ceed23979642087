"""Jobs that tests do damage to, each in a process of its own, and what an undisturbed one makes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images

REPOSITORY = Path(__file__).parents[3]
PER_SHARD = 4
SLOW = 3000  # iterations of SLIC: a quarter of a second an image, so that there is time to kill
MARK = "R2O_TEST_RUN"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def samples(folder: Path) -> dict[str, str]:
    """SHA-256 of every member of every tar, read by plain tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.update({m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in tar})
    return found


def arguments(images: object, shards: object, **settings: object) -> list[str]:
    settings = {"images_per_shard": PER_SHARD, "max_bad_fraction": 0.5} | settings
    return [f"--images={images}", f"--shards={shards}"] + [
        f"--set=shards.{key}={value}" for key, value in settings.items()
    ]


def command(*given: str) -> list[str]:
    return [sys.executable, "-m", "preprocess.make_shards", *given]


def run(*given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*given), cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def undisturbed(images: Path, folder: Path, **settings: object) -> dict[str, str]:
    """What the shards must be, made in this process, one after the other."""
    wanted = ShardSettings.model_validate({"images_per_shard": PER_SHARD, "max_bad_fraction": 0.5} | settings)
    job = ShardJob(folder, Plan(list_images(images), wanted))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(task, folder=job.folder))
    job.finish()
    return contents(folder)


@contextlib.contextmanager
def started(given: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver, and the end of all that it started."""
    mark = os.urandom(8).hex()
    with log.open("ab") as out:
        driver = subprocess.Popen(
            command(*given), cwd=REPOSITORY, env=os.environ | {MARK: mark} | environment, stdout=out, stderr=out
        )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()
        end_all(mark)


def end_all(mark: str) -> None:
    """A killed driver's Ray lives on for a while; nothing of it shall disturb the next one's."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
