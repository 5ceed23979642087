"""Images → superpixel shards, one Ray task a shard.

python -m preprocess.make_shards --images IMAGES --shards SHARDS [--config FILE] [--set shards.key=value]
    [--overwrite] [--dry-run] [--sheet PNG] [--runtime-env YAML]

Local Ray by default; with RAY_ADDRESS set, that cluster (IMAGES and SHARDS must then be on storage that it shares, or
URLs). Its workers get our code from here; the packages of pyproject.toml they have, or --runtime-env names them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError, exit_code_of, os_errors_named
from pipeline.foundation.exit_codes import EXIT_TOO_MANY_BAD
from pipeline.foundation.settings import load_settings
from pipeline.foundation.signals import stop_signals_raise
from preprocess.config import ShardSettings
from preprocess.shards.contact_sheet import check_sheet, contact_sheet, write_sheet
from preprocess.shards.plan import Plan
from preprocess.shards.ray_driver import described, make_missing
from preprocess.shards.worker import make_shard_isolated
from preprocess.sources.list_images import list_images

SAMPLED_IMAGES = 128
SHEET_IMAGES = 24


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0, 2 for a mistake in the input, 3 for too many bad images, 75 or 130 for signals."""
    with stop_signals_raise():
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
    if args.sheet:
        check_sheet(args.sheet)
    with os_errors_named(args.shards), list_images(args.images, settings.source) as listing:
        plan = Plan(listing, settings)
        if args.dry_run:
            print(described(plan, args.images))
            return _estimate(plan, args.shards)
        return _make(plan, args, environment)


def _make(plan: Plan, args: argparse.Namespace, environment: dict[str, Any]) -> int:
    made = make_missing(plan, args.shards, images=args.images, overwrite=args.overwrite, environment=environment)
    if args.sheet and made.anything and made.manifest.stored:
        write_sheet(contact_sheet(args.shards, count=SHEET_IMAGES), args.sheet)
        print(f"look at them: {args.sheet}")
    return _verdict(made.manifest, args.shards)


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


def _runtime_env(path: Path | None) -> dict[str, Any]:
    """Ray's runtime_env from a YAML file. Raises InputError where it is none."""
    if path is None:
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"--runtime-env {path}: cannot be read ({error})") from None
    if not isinstance(loaded, dict):
        raise InputError(f"--runtime-env {path}: must hold keys of Ray's runtime_env, as pip or env_vars")
    return loaded


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
