"""Images → superpixel shards, one Ray task per shard; the only file that knows Ray.

python -m preprocess.make_shards --images IMAGES --shards SHARDS [--config FILE] [--set shards.key=value]
    [--overwrite] [--dry-run] [--sheet PNG] [--runtime-env YAML]

Local Ray by default; with RAY_ADDRESS set, that cluster (IMAGES and SHARDS must then be on storage that it shares, or
URLs). Its workers get our code from here; the packages of pyproject.toml they have, or --runtime-env names them.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.manifest import Manifest, read_quarantine
from pipeline.foundation.errors import InputError, exit_code_of
from pipeline.foundation.exit_codes import EXIT_TOO_MANY_BAD
from pipeline.foundation.progress import Progress, format_seconds
from pipeline.foundation.settings import load_settings
from preprocess.config import ShardSettings
from preprocess.preview import contact_sheet, write_sheet
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import ShardResult
from preprocess.shards.plan import Plan
from preprocess.shards.worker import make_shard_isolated
from preprocess.sources.list_images import list_images

TASKS_PER_CPU = 2
SAMPLED_IMAGES = 128
SHEET_IMAGES = 24
SHOWN_REASONS = 10
REACH_SECONDS = 10
OBJECT_STORE_BYTES = 100 * 2**20  # tasks and their results are small; Ray's default takes 30 % of the memory


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 2 for a mistake in the input, 3 for too many bad images, 130 for Ctrl-C."""
    return exit_code_of(lambda: _run(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m preprocess.make_shards", description="Turn images into superpixel shards."
    )
    parser.add_argument("--images", required=True, help="where the images are: a path or a URL")
    parser.add_argument("--shards", required=True, help="folder for the shards: new, or of the same job; path or URL")
    parser.add_argument("--config", type=Path, help="YAML file; its section `shards` counts")
    parser.add_argument("--set", action="append", default=[], metavar="shards.KEY=VALUE", help="wins over the file")
    parser.add_argument("--overwrite", action="store_true", help="remove the shards in SHARDS and make them again")
    parser.add_argument("--dry-run", action="store_true", help="say how much it will be, and make nothing")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet to draw at the end")
    parser.add_argument("--runtime-env", type=Path, metavar="YAML", help="Ray's runtime_env for a cluster's workers")
    return parser


def _run(args: argparse.Namespace) -> int:
    settings = load_settings(ShardSettings, "shards", args.config, args.set)
    environment = _runtime_env(args.runtime_env)
    try:
        with list_images(args.images, settings.source) as listing:
            plan = Plan(listing, settings)
            if args.dry_run:
                print(_what(plan, args.images))
                return _estimate(plan, args.shards)
            return _make(plan, args, environment)
    except OSError as error:
        where, what = error.filename or args.shards, error.strerror or error
        raise InputError(f"{where}: {what}; put that right and run the same command again") from None


def _make(plan: Plan, args: argparse.Namespace, environment: dict[str, Any]) -> int:
    job = ShardJob(args.shards, plan)
    job.load(overwrite=args.overwrite)
    if job.manifest is not None and not job.is_begun and not job.pending():
        print(f"{args.shards}: finished and unchanged, {_counts(job.manifest)}")
        return _verdict(job.mark_limit(), args.shards)
    with job.lock():
        job.load(overwrite=args.overwrite)
        job.begin(overwrite=args.overwrite)
        print(_what(plan, args.images), file=sys.stderr)
        manifest = _execute(job, args.shards, environment)
    if args.sheet and manifest.stored:
        write_sheet(contact_sheet(args.shards, count=SHEET_IMAGES), args.sheet)
        print(f"look at them: {args.sheet}")
    return _verdict(manifest, args.shards)


def _what(plan: Plan, images: str) -> str:
    listed = len(plan.listing)
    return (
        f"{images}: {plan.listing.described}, {listed} images{f', {plan.total} taken' if plan.total < listed else ''}"
    )


def _estimate(plan: Plan, shards: str) -> int:
    """Make a few of the images in a temporary folder, and say what all of them will be."""
    sources = plan.sources(range(min(plan.total, SAMPLED_IMAGES)))
    with tempfile.TemporaryDirectory(prefix="r2o-sample-") as scratch:
        task = replace(plan.task(0), sources=tuple(sources))
        make_shard_isolated(replace(task, sources=task.sources[:1]), folder=scratch, owned=False)  # starts the process
        result = make_shard_isolated(task, folder=scratch, owned=False)
    each = plan.total / len(sources)
    print(
        f"{shards} would be {len(plan)} shards of {plan.settings.images_per_shard} images, {plan.total} in all; about "
        f"{result.stats.bytes * each / 1e9:.3g} GB and {result.seconds * each / 3600:.3g} core-hours, by a sample of "
        f"{len(sources)} images ({len(sources) / result.seconds:.0f} images/s per core, {len(result.quarantine)} bad)"
    )
    return 0


def _execute(job: ShardJob, shards: str, environment: dict[str, Any]) -> Manifest:
    """Make every pending shard and finish the job, with progress; prints a summary."""
    start = time.monotonic()
    pending, total = job.pending(), job.plan.total
    left = sum(len(job.plan.positions(number)) for number in pending)
    bad = sum(len(result.quarantine) for result in job.results.values())
    progress = Progress("shards", total, "images", done=total - left)
    if len(pending) < len(job.plan):
        print(f"going on: {len(job.plan) - len(pending)} of {len(job.plan)} shards are there", file=sys.stderr)
    written = 0
    for result in _results(job, pending, environment):
        job.record(result)
        written += result.stats.bytes
        bad += len(result.quarantine)
        megabytes = written / 1e6 / (time.monotonic() - start)
        progress.advance(result.stats.samples + len(result.quarantine), extra=f"{megabytes:.3g} MB/s  {bad} bad")
    core_hours = sum(result.seconds for result in job.results.values()) / 3600
    manifest = job.finish()
    took = time.monotonic() - start
    print(f"{shards}: {_counts(manifest)}; {format_seconds(took)}, {core_hours:.3g} core-hours")
    reasons = Counter(entry.reason for entry in read_quarantine(job.folder))
    for reason, count in reasons.most_common(SHOWN_REASONS):
        print(f"  {count} quarantined: {reason}")
    if len(reasons) > SHOWN_REASONS:
        print(f"  … and {len(reasons) - SHOWN_REASONS} other reasons; all of them are in quarantine.jsonl")
    return manifest


def _results(job: ShardJob, pending: Sequence[int], environment: dict[str, Any]) -> Iterator[ShardResult]:
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
                task = job.plan.task(number)
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


def _runtime_env(path: Path | None) -> dict[str, Any]:
    """Ray's runtime_env from a YAML file. Raises InputError where it is none."""
    if path is None:
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--runtime-env {path}: cannot be read ({error})") from None
    if not isinstance(loaded, dict):
        raise InputError(f"--runtime-env {path}: must hold keys of Ray's runtime_env, as pip or env_vars")
    return loaded


def _shipped(environment: dict[str, Any]) -> dict[str, Any]:
    """What a cluster's workers get: what the user names, and our code unless `ray job submit` has shipped it."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return environment
    here = Path(__file__).resolve().parents[1]
    return {"py_modules": [str(here / package) for package in ("pipeline", "preprocess")]} | environment


@contextmanager
def _ray(workers: int | None, environment: dict[str, Any]) -> Iterator[Callable[[], int]]:
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


def _verdict(manifest: Manifest, shards: str) -> int:
    """Exit code of a finished set, by the fraction of its images that are in quarantine."""
    if not manifest.over_limit:
        return 0
    fraction = manifest.quarantined / manifest.listed
    print(
        f"r2o: error: {shards}: {manifest.quarantined} of {manifest.listed} images are bad ({fraction:.1%}), more than "
        "shards.max_bad_fraction allows; the set is whole but marked. quarantine.jsonl says why; raise the limit and "
        "run the same command again to accept them",
        file=sys.stderr,
    )
    return EXIT_TOO_MANY_BAD


if __name__ == "__main__":
    sys.exit(main())
