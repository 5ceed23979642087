"""Ray makes the missing shards of a plan, one task a shard; the only file that knows Ray."""

from __future__ import annotations

import itertools
import logging
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import Progress, format_seconds, one_line
from pipeline.foundation.signals import same_handlers
from preprocess.shards.folder.guard import require_apart
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import ShardResult
from preprocess.shards.plan import Plan
from preprocess.shards.second_try import readable_again, take_back, to_make_again, unread_before
from preprocess.shards.worker import make_shard_isolated

TASKS_PER_CPU = 2
SHOWN_REASONS = 10
SECOND_TRIES = 2
REACH_SECONDS = 10
OBJECT_STORE_BYTES = 100 * 2**20  # tasks and their results are small; Ray's default takes 30 % of the memory


class Made(NamedTuple):
    """A finished set, and whether anything of it was made now."""

    manifest: Manifest
    anything: bool


def make_missing(
    plan: Plan,
    shards: str,
    *,
    images: str,
    overwrite: bool = False,
    remake: Collection[str] = (),
    environment: Mapping[str, Any] | None = None,
) -> Made:
    """Make what is missing of a plan's shards, and finish the set. Where nothing is, Ray is not started.

    Shards that lack images which could not be opened then, and can be now, are made again.

    Args:
        shards: folder of the set, a path or a URL.
        images: what the plan lists, for people.
        overwrite: replace shards of other settings or images.
        remake: names of shards of a finished set that are damaged; each is replaced by what the manifest names, or by
            nothing.
        environment: Ray's runtime_env for a cluster's workers.
    Raises:
        InputError: the folder is another job's or lies among the images, an input is damaged, or Ray cannot be had.
        OSError: a disk failed.
    """
    job = ShardJob(shards, plan)
    require_apart(plan.listing, job.folder)
    job.load(overwrite=overwrite)
    if job.manifest is not None and not (job.is_begun or remake or job.pending() or readable_again(job)):
        print(f"{shards}: finished, and the images unchanged by name and size; {_counts(job.manifest)}")
        return Made(job.mark_limit(), anything=False)
    with job.lock():
        job.load(overwrite=overwrite)
        job.begin()
        print(described(plan, images), file=sys.stderr)
        return Made(_execute(job, shards, remake, environment or {}), anything=True)


def described(plan: Plan, images: str) -> str:
    """What is listed, and how much of it is taken."""
    listed = len(plan.listing)
    return (
        f"{images}: {plan.listing.described}, {listed} images{f', {plan.total} taken' if plan.total < listed else ''}"
    )


def _execute(job: ShardJob, shards: str, remake: Collection[str], environment: Mapping[str, Any]) -> Manifest:
    """Make every pending shard and finish the job, with progress; prints a summary."""
    start = time.monotonic()
    damaged = {*job.pending(), *map(job.plan.number, remake)}
    again = to_make_again(job, damaged)
    pending = sorted(damaged - {*again})
    if there := len(job.plan) - len(pending) - len(again):
        print(f"going on: {there} of {len(job.plan)} shards are there", file=sys.stderr)
    _make(job, pending, environment)  # first, as long as a manifest says what they must be
    for _ in range(1 + SECOND_TRIES):
        again = again or (readable_again(job) if job.manifest is None else [])
        if not again:
            break
        print(f"{len(again)} shards lack images that can be opened again; making those once more", file=sys.stderr)
        take_back(job, again)
        _make(job, again, environment)
        again = []
    unread = sum(map(len, unread_before(job).values()))
    core_hours = sum(result.seconds for result in job.results.values()) / 3600
    manifest = job.finish()
    took = time.monotonic() - start
    print(f"{shards}: {_counts(manifest)}; {format_seconds(took)}, {core_hours:.3g} core-hours")
    reasons = Counter(entry.reason for entry in read_quarantine(job.folder))
    for reason, count in reasons.most_common(SHOWN_REASONS):
        print(one_line(f"  {count} quarantined: {reason}"))
    if len(reasons) > SHOWN_REASONS:
        print(f"  … and {len(reasons) - SHOWN_REASONS} other reasons; all of them are in quarantine.jsonl")
    if unread:
        print(f"  {unread} of them could not be opened; the same command tries those again")
    return manifest


def _make(job: ShardJob, numbers: Sequence[int], environment: Mapping[str, Any]) -> None:
    """Make and note shards, with a line of progress over all images of the job."""
    start, written = time.monotonic(), 0
    left = sum(len(job.plan.positions(number)) for number in numbers)
    bad = sum(len(result.quarantine) for result in job.results.values())
    progress = Progress("shards", job.plan.total, "images", done=job.plan.total - left)
    for result in _results(job, numbers, environment):
        job.record(result)
        written += result.stats.bytes
        bad += len(result.quarantine)
        megabytes = written / 1e6 / (time.monotonic() - start)
        progress.advance(result.stats.samples + len(result.quarantine), extra=f"{megabytes:.3g} MB/s  {bad} bad")


def _results(job: ShardJob, pending: Sequence[int], environment: Mapping[str, Any]) -> Iterator[ShardResult]:
    """Result of each pending task as it ends; Ray holds a bounded number of them, and starts for none."""
    if not pending:
        return
    with _ray(job.plan.settings.workers, environment) as most_running:
        import ray
        from ray.exceptions import RayError, RayTaskError

        remote = ray.remote(num_cpus=1, max_retries=job.plan.settings.retries)(make_shard_isolated)
        running: dict[ray.ObjectRef, str] = {}
        waiting = iter(pending)
        while True:
            for number in itertools.islice(waiting, max(0, most_running() - len(running))):
                task = job.task(number)
                running[remote.remote(task, folder=job.folder.root)] = task.name
            if not running:
                return
            done = ray.wait(list(running), num_returns=1)[0][0]
            name = running.pop(done)
            try:
                result = ray.get(done)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                raise InputError(
                    f"{job.folder.root}/{name}: its Ray worker or node died again and again "
                    f"({type(error).__name__}); run the same command again to go on, with a lower shards.workers if "
                    "memory was short"
                ) from None
            yield result


def _shipped(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a cluster's workers get: what the user names, and our code unless `ray job submit` has shipped it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return {**environment}
    here = Path(__file__).resolve().parents[2]
    return {"py_modules": [str(here / package) for package in ("pipeline", "preprocess")], **environment}


@contextmanager
def _ray(workers: int | None, environment: Mapping[str, Any]) -> Iterator[Callable[[], int]]:
    """The cluster of RAY_ADDRESS, or a local one of `workers` CPUs; yields how many tasks to hand it at a time.

    On a cluster `workers` bounds the tasks; a local one holds a few more, so that none of its CPUs waits. Nodes come
    and go, so that number is asked for again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_ours = not ray.is_initialized()  # else it is a caller's, and stays
    address = os.environ.get("RAY_ADDRESS", "")
    is_local = is_ours and address in ("", "local")
    if is_local:
        # "local": without it Ray would join whatever cluster `ray start` has left on this machine.
        quiet |= {"address": "local", "num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _reach(address)
        quiet["runtime_env"] = _shipped(environment)
    try:
        if is_ours:
            with same_handlers():  # Ray's own print a stack of C++ and end the process
                _start(include_dashboard=False if is_local else None, **quiet)

        def most_running() -> int:
            most = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
            return most if is_local else min(most, workers or most)

        yield most_running
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster there ({error})") from None
    finally:
        if is_ours:
            ray.shutdown()


def _start(**options: Any) -> None:
    import ray

    try:
        ray.init(**options)
    except (ConnectionError, ValueError):
        raise
    except Exception as error:  # Ray's own text, of a plain Exception
        raise InputError(f"Ray did not start ({error}); run the same command again") from None


def _reach(address: str) -> None:
    """Raise InputError where nobody listens at host:port; Ray itself tries that for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or what Ray alone can judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster there ({error}); start one, or unset it") from None


def _counts(manifest: Manifest) -> str:
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    return (
        f"{manifest.stored} of {manifest.listed} images in {len(manifest.shards)} shards, {megabytes:.1f} MB; "
        f"{manifest.quarantined} quarantined, {manifest.ignored} other files ignored"
    )
