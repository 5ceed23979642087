"""Demo images with known masks, from nothing: class folders to pretrain on, a VOC2012 folder to evaluate on.

python -m preprocess.scenes --out DIR [--config FILE] [--set scenes.key=value]

    DIR/images/<class of the largest object>/<name>.jpg
    DIR/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}, classes.txt (in id order)
    DIR/scenes.json                                       written last
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.foundation.errors import exit_code_of, os_errors_named
from pipeline.foundation.settings import load_settings
from preprocess.config import SceneSettings
from preprocess.demo.make_scenes import make_scenes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m preprocess.scenes", description="Generate the demo images.")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--config", type=Path, help="YAML file; its section `scenes` counts")
    parser.add_argument("--set", action="append", default=[], metavar="scenes.KEY=VALUE", help="wins over the file")
    args = parser.parse_args(argv)
    return exit_code_of(lambda: _run(args.out, load_settings(SceneSettings, "scenes", args.config, args.set)))


def _run(out: Path, settings: SceneSettings) -> int:
    with os_errors_named(out):
        made = make_scenes(out, settings)
    what = f"{settings.pretrain_images} scenes to pretrain on, {settings.train_images} + {settings.val_images} as VOC"
    print(f"{out}: {what}{'' if made else ', finished and unchanged'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
