"""The driver's share: a list on disk and a plan over it, for as many made-up images as one asks for.

python -m tests.benchmarks.plan [--images 1281167 100000000]

Prints seconds and the peak of resident memory of a process that does nothing else, for each number.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from preprocess.config import ShardSettings
from preprocess.shards.plan import Plan
from preprocess.sources.listing import Listing, Source

PER_CLASS = 1281
TASKS_AT_MOST = 2000


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time and memory of listing and planning.")
    parser.add_argument("--images", type=int, nargs="+", default=[1_281_167, 100_000_000])
    args = parser.parse_args(argv)
    if len(args.images) == 1:
        plan(args.images[0])
        return 0
    for count in args.images:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.plan", "--images", str(count)], check=True)
    return 0


def plan(count: int) -> None:
    """List, hash and cut into tasks. Tasks are all made, or so many of them, spread evenly."""
    began = time.perf_counter()
    with Listing(root="/made/up", kind="files", described="made up") as listing:
        for number in range(count):
            name = b"n%08d/n%08d_%d.JPEG" % (number // PER_CLASS, number // PER_CLASS, number % PER_CLASS)
            listing.add(Source(name, 110_000 + number % 1000))
        listed = time.perf_counter()
        made = Plan(listing, ShardSettings())
        made.fingerprint  # noqa: B018  hashes the list
        hashed = time.perf_counter()
        step = max(1, len(made) // TASKS_AT_MOST)
        numbers = range(0, len(made), step)
        images = sum(len(made.task(number).sources) for number in numbers)
        cut = (time.perf_counter() - hashed) * len(made) / len(numbers)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{count:>11,} images, {len(made):,} shards: list {listed - began:.1f} s, hash {hashed - listed:.1f} s, "
            f"tasks {cut:.1f} s ({len(numbers)} of them made, {images:,} images); peak {peak:.0f} MiB"
        )


if __name__ == "__main__":
    sys.exit(main())
