"""Images → superpixel shards, one Ray task per shard; the only file that knows Ray.

python -m preprocess.make_shards --images IMAGES --shards SHARDS [--config FILE] [--set shards.key=value] [--overwrite]

Local Ray by default; with RAY_ADDRESS set, that cluster (both folders must then be on storage that it shares).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import shlex
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.artifacts.errors import InputError, exit_code_of
from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.artifacts.progress import Progress, format_seconds
from pipeline.artifacts.settings import load_settings
from preprocess.config import ShardSettings
from preprocess.job import ShardJob
from preprocess.plan import Plan, ShardTask
from preprocess.shard_task import ShardResult, make_shard
from preprocess.sources import list_images

EXIT_TOO_MANY_BAD = 3
TASKS_PER_CPU = 2
REACH_SECONDS = 10
OBJECT_STORE_BYTES = 100 * 2**20  # tasks and their results are small; Ray's default takes 30 % of the memory


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 2 for a mistake in the input, 3 for too many bad images, 130 for Ctrl-C."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.make_shards", description="Turn a folder of images into superpixel shards."
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of images, or of class folders")
    parser.add_argument("--shards", type=Path, required=True, help="folder for the shards: new, or of the same job")
    parser.add_argument("--config", type=Path, help="YAML file; its section `shards` counts")
    parser.add_argument("--set", action="append", default=[], metavar="shards.KEY=VALUE", help="wins over the file")
    parser.add_argument("--overwrite", action="store_true", help="remove the shards in SHARDS and make them again")
    return parser


def _run(args: argparse.Namespace) -> int:
    settings = load_settings(ShardSettings, "shards", args.config, args.set)
    plan = Plan(list_images(args.images.absolute()), settings)
    job = ShardJob(args.shards.absolute(), plan)
    try:
        job.load(overwrite=args.overwrite)
        if job.manifest is not None and not job.pending and not job.job_folder.exists():
            print(f"{args.shards}: finished and unchanged, {_counts(job.manifest)}")
            return _verdict(job.manifest, settings)
        with job.lock():
            job.load(overwrite=args.overwrite)
            job.begin(overwrite=args.overwrite)
            manifest = _execute(job)
    except OSError as error:
        where = error.filename or args.shards
        raise InputError(f"{where}: {error.strerror}; put that right and run the same command again") from None
    print(f"look at them: python -m preprocess.preview --shards {shlex.quote(str(args.shards))} --out superpixels.png")
    return _verdict(manifest, settings)


def _execute(job: ShardJob) -> Manifest:
    """Make every pending shard and finish the job, with progress; prints a summary."""
    start, busy = time.monotonic(), 0.0
    pending = job.pending
    total = len(job.plan.listing.images)
    left = sum(len(job.plan.task(number).images) for number in pending)
    bad = sum(len(result.quarantine) for result in job.results.values())
    progress = Progress("shards", total, "images", done=total - left)
    if len(pending) < len(job.plan):
        print(f"going on: {len(job.plan) - len(pending)} of {len(job.plan)} shards are there", file=sys.stderr)
    for result, seconds in _results(job, pending):
        job.record(result)
        busy += seconds
        bad += len(result.quarantine)
        progress.advance(result.stats.samples + len(result.quarantine), extra=f"{bad} bad")
    manifest = job.finish()
    took = time.monotonic() - start
    print(f"{job.folder}: {_counts(manifest)}; {format_seconds(took)}, {busy / 3600:.3g} core-hours")
    reasons = Counter(entry.reason for entry in read_quarantine(job.folder))
    for reason, count in reasons.most_common(10):
        print(f"  {count} quarantined: {reason}")
    return manifest


def _results(job: ShardJob, pending: Sequence[int]) -> Iterator[tuple[ShardResult, float]]:
    """Result and seconds of each pending task as it ends; Ray holds a bounded number of them, and starts for none."""
    if not pending:
        return
    with _ray(job.plan.settings.workers) as most_running:
        import ray
        from ray.exceptions import RayError, RayTaskError

        remote = ray.remote(num_cpus=1)(_timed)
        running: dict[ray.ObjectRef, str] = {}
        waiting = iter(pending)
        while True:
            for number in itertools.islice(waiting, most_running - len(running)):
                task = job.plan.task(number)
                running[remote.remote(task, job.folder)] = task.name
            if not running:
                return
            done = ray.wait(list(running), num_returns=1)[0][0]
            try:
                result = ray.get(done)
            except RayTaskError as error:
                raise error.cause from None
            except RayError as error:
                raise InputError(
                    f"{job.folder / running[done]}: its Ray worker died ({type(error).__name__}: out of memory?); "
                    "set shards.workers lower and run the same command again to go on"
                ) from None
            del running[done]
            yield result


def _timed(task: ShardTask, folder: Path) -> tuple[ShardResult, float]:
    start = time.monotonic()
    return make_shard(task, folder=folder), time.monotonic() - start


@contextmanager
def _ray(workers: int | None) -> Iterator[int]:
    """The cluster of RAY_ADDRESS, or a local one of `workers` CPUs; yields how many tasks to hand it at a time.

    On a cluster `workers` bounds the tasks; a local one holds a few more, so that none of its CPUs waits.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    is_ours = not ray.is_initialized()  # else it is a caller's, and stays
    address = os.environ.get("RAY_ADDRESS", "")
    is_local = is_ours and address in ("", "local")
    if is_local:
        quiet |= {"num_cpus": workers, "num_gpus": 0, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _reach(address)
    try:
        if is_ours:
            ray.init(include_dashboard=False if is_local else None, **quiet)
        most = TASKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
        yield most if is_local else min(most, workers or most)
    except ConnectionError as error:
        raise InputError(f"RAY_ADDRESS={address}: no Ray cluster there ({error})") from None
    finally:
        if is_ours:
            ray.shutdown()


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


def _verdict(manifest: Manifest, settings: ShardSettings) -> int:
    """Exit code of a finished set, by the fraction of its images that are in quarantine."""
    fraction = manifest.quarantined / manifest.listed
    if fraction <= settings.max_bad_fraction:
        return 0
    print(
        f"r2o: error: {manifest.quarantined} of {manifest.listed} images are bad ({fraction:.1%}, more than "
        f"shards.max_bad_fraction={settings.max_bad_fraction:g}); see quarantine.jsonl, and raise it to accept them",
        file=sys.stderr,
    )
    return EXIT_TOO_MANY_BAD


if __name__ == "__main__":
    sys.exit(main())
