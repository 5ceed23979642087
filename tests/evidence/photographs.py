"""`make evidence-photographs DATA=…`: methods at equal compute on photographs, and what every protocol says of them.

python -m tests.evidence.photographs DATA [--work runs/methods] [--methods r2o byol …] [--seeds 0] [--parts score tell]

DATA holds `imagenette` (train, val), `VOC2012_small` (or another folder of VOC's layout, by --voc) and, for the CUB
protocol, `weizmann_horse_cub_layout`. Recipe, budgets, and which result counts as what were registered before any run
(docs/log.md). A run takes some twenty minutes of one core, and its scores some ten. What is finished is skipped, so the
same command goes on after an interruption.

WORK/runs/<method>-seed<k> holds a run; `compute.json` in it says what it took. WORK/results.md has scores, verdicts and
rankings.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.results import encode_json, read_results_json
from pipeline.artifacts.run_files import BACKBONE_NAME
from pipeline.cli import main as r2o
from pipeline.foundation.files import write_atomic
from tests.evidence.methods import CONFIG, METHODS, sets_of
from tests.evidence.verdicts import write_results

COMPUTE_NAME = "compute.json"
OVER_TRAINING = "abo-over-training"
BANK = 2000  # photographs of Imagenette's train that kNN and regression are fitted to
PARTS = ("pretrain", "score", "tell")
VOC_PROTOCOLS = "linear,knn,context,overclustering,abo"


def main(argv: Sequence[str] | None = None) -> int:
    """All parts that are asked for; the exit code of the first that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.evidence.photographs", description="Methods at equal compute."
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--voc", type=Path, help="DATA/VOC2012_small")
    parser.add_argument("--work", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0,))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the budget is of one core, and two runs then fit beside each other
    voc = given.voc or given.data / "VOC2012_small"
    wanted = [(method, seed) for seed in given.seeds for method in given.methods]
    if "pretrain" in given.parts:
        for method, seed in wanted:
            if code := pretrain(method, seed, images=given.data / "imagenette/train", work=given.work):
                return code
    if "score" in given.parts:
        for method, seed in wanted:
            run = run_folder(given.work, method, seed)
            if (run / BACKBONE_NAME).exists() and (code := score(run, data=given.data, voc=voc, work=given.work)):
                return code
    if "tell" in given.parts:
        write_results(given.work)
    return 0


def run_folder(work: Path, method: str, seed: int) -> Path:
    """Where a run is."""
    return work / "runs" / f"{method}-seed{seed}"


def pretrain(method: str, seed: int, *, images: Path, work: Path) -> int:
    """One run, and what it took; the exit code."""
    run = run_folder(work, method, seed)
    if (run / BACKBONE_NAME).exists():
        return 0
    shards = work / METHODS[method].shards
    sets = [*METHODS[method].shard_sets, *sets_of(method, seed)]
    if code := r2o(["shards", "--config", str(CONFIG), "--images", str(images), "--shards", str(shards), *_set(sets)]):
        return code
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    code = r2o(["pretrain", "--config", str(CONFIG), "--shards", str(shards), "--run", str(run), *_set(sets)])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    sittings = (read_results_json(run / COMPUTE_NAME) or {}).get("sittings", [])
    cpu = sum(getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime"))
    sittings.append({"cpu_seconds": round(cpu), "wall_seconds": round(time.monotonic() - began), "exit": code})
    write_atomic(run / COMPUTE_NAME, encode_json({"machine": platform.processor(), "sittings": sittings}))
    return code


def score(run: Path, *, data: Path, voc: Path, work: Path) -> int:
    """Every protocol on one run and on random weights; what is there is kept. The exit code of what failed."""
    out, val_shards = work / "scores", work / "voc-shards"
    horses = data / "weizmann_horse_cub_layout"
    frozen = ["--config", str(CONFIG), "--weights", str(run)]
    of_bank = _set([f"eval_frozen.data.max_images={BANK}"])
    on_voc = _set(["eval_frozen.data.train_list=trainaug", f"eval_frozen.abo.superpixels={val_shards}"])
    commands = [
        ["shards", "--images", str(voc / "JPEGImages"), "--shards", str(val_shards)],
        [
            "eval-frozen",
            *frozen,
            "--data",
            str(data / "imagenette"),
            "--protocols",
            "classes",
            "--out",
            str(out),
            *of_bank,
        ],
        ["eval-frozen", *frozen, "--data", str(voc), "--protocols", VOC_PROTOCOLS, "--out", str(out), *on_voc],
        [
            "eval-abo",
            *frozen,
            "--checkpoint",
            "all",
            "--data",
            str(voc),
            "--out",
            str(run / "abo-over-training"),
            *on_voc,
        ],
        ["eval-voc", "--config", str(CONFIG), "--run", str(run), "--voc", str(voc)],
    ]
    if horses.is_dir():
        commands.append(["eval-frozen", *frozen, "--data", str(horses), "--protocols", "cub", "--out", str(out)])
    return next((code for command in commands if (code := r2o(command))), 0)


def _set(sets: Sequence[str]) -> list[str]:
    return ["--set", *sets] if sets else []


if __name__ == "__main__":
    sys.exit(main())
