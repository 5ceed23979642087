"""The job while real damage is done to it: every time the result is, byte for byte, that of an undisturbed run."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time

import psutil
import pytest

from tests.preprocess.shards.damage_jobs import SLOW, arguments, contents, run, samples, started, undisturbed, wait_for

KILLS = 30


@pytest.fixture(scope="module")
def slow_result(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow") / "shards"
    found = undisturbed(images, folder, superpixels={"iterations": SLOW})
    assert len(samples(folder)) == 99 * 3
    return found


@pytest.mark.slow
def test_thirty_kills_of_workers_and_drivers(images, slow_result, tmp_path):
    """Ray's workers, the processes in which they make shards, and drivers, at random instants."""
    seed = int(os.environ.get("R2O_KILL_SEED", time.time_ns() % 2**32))
    print(f"R2O_KILL_SEED={seed}")
    dice, shards, log = random.Random(seed), tmp_path / "s", tmp_path / "log"
    given = arguments(images, shards, **{"superpixels.iterations": SLOW, "retries": 100, "workers": 2})
    killed = {"driver": 0, "worker": 0, "process": 0}
    code: int | None = None
    while code is None:
        with started(given, log) as driver:
            code = disturbed(driver, dice, killed)
        if code == 0 and sum(killed.values()) < KILLS:  # done before its time: begin again
            shutil.rmtree(shards)
            code = None
    print(killed)
    assert code == 0, log.read_text()
    assert contents(shards) == slow_result


def disturbed(driver: subprocess.Popen[bytes], dice: random.Random, killed: dict[str, int]) -> int | None:
    """Kill until it is enough, from when the first shard is in the making; the exit code, None for a killed driver."""
    while not victim_of(driver, "process", dice):
        if (code := driver.poll()) is not None:
            return code
        time.sleep(0.05)
    while sum(killed.values()) < KILLS:
        time.sleep(dice.uniform(0.05, 1.0))
        if (code := driver.poll()) is not None:
            return code
        kind = dice.choices(["driver", "worker", "process"], [1, 3, 3])[0]
        if victim := victim_of(driver, kind, dice):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed[kind] += 1
        if kind == "driver":
            driver.wait()
            return None
    return driver.wait(300)


def victim_of(driver: subprocess.Popen[bytes], kind: str, dice: random.Random) -> psutil.Process | None:
    """The driver, one of its Ray workers that has a task, or a process in which such a one makes a shard."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(driver.pid)
        if kind == "driver":
            return parent
        below = parent.children(recursive=True)
        found = {
            "worker": [p for p in below if p.cmdline()[:1] == ["ray::make_shard_isolated"]],
            "process": [p for p in below if "preprocess.shards.worker" in p.cmdline()],
        }[kind]
        return dice.choice(found) if found else None
    return None


@pytest.mark.slow
def test_a_node_lost_in_mid_job(images, slow_result, tmp_path):
    """Three nodes on this machine; one is killed. The same driver goes on, and nobody runs anything again."""
    from ray.cluster_utils import Cluster

    shards, log = tmp_path / "s", tmp_path / "log"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    try:
        others = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
        given = arguments(images, shards, **{"superpixels.iterations": SLOW})
        with started(given, log, RAY_ADDRESS=cluster.address) as driver:
            wait_for(lambda: len(list((shards / ".job").glob("*.tar.json"))) >= 3, driver, log)
            cluster.remove_node(others[0], allow_graceful=False)
            assert driver.wait(300) == 0, log.read_text()
    finally:
        cluster.shutdown()
    assert contents(shards) == slow_result


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_bytes(images, tmp_path, workers):
    expected = undisturbed(images, tmp_path / "expected")
    done = run(*arguments(images, tmp_path / "s", workers=workers))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "s") == expected
    assert samples(tmp_path / "s") == samples(tmp_path / "expected")


@pytest.mark.slow
def test_two_drivers_at_once(images, slow_result, tmp_path):
    """One wins; the other says so and touches nothing."""
    shards = tmp_path / "s"
    given = arguments(images, shards, **{"superpixels.iterations": SLOW})
    logs = [tmp_path / "one", tmp_path / "two"]
    with started(given, logs[0]) as one, started(given, logs[1]) as two:
        codes = sorted((one.wait(300), two.wait(300)))
    assert codes == [0, 2]
    assert sorted("another job is making these shards" in log.read_text() for log in logs) == [False, True]
    assert contents(shards) == slow_result
