"""The command that draws a contact sheet of shards.

python -m preprocess.preview --shards SHARDS --out sheet.png [--count 24] [--shard NAME] [--key KEY] [--map NAME]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.foundation.errors import exit_code_of
from preprocess.shards.contact_sheet import check_sheet, contact_sheet, write_sheet


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.preview", description="Draw superpixels of shards.")
    parser.add_argument("--shards", required=True, help="a finished folder of shards: a path or a URL")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--count", type=int, default=24, help="number of images, spread evenly over what is chosen")
    parser.add_argument("--shard", action="append", default=[], help="draw from this one: its file name or number")
    parser.add_argument("--key", action="append", default=[], help="draw this sample")
    parser.add_argument("--map", default=MAIN_MAP, help="draw this further map")
    return exit_code_of(lambda: _run(parser.parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    check_sheet(args.out)
    picture = contact_sheet(args.shards, count=args.count, shards=args.shard, keys=args.key, map_name=args.map)
    write_sheet(picture, args.out)
    print(f"superpixels: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
