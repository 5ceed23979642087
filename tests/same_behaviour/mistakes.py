"""Command lines with a mistake each, and the damaged things that some of them name."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from tests.same_behaviour.checkout import Checkout

# {in}: what both are given. {run}, {shards}, {scenes}, {voc}: of the row `run`. {bad}: what `spoil` makes.
# {new}: a folder that is not there, and must not be there in the end.
PREPROCESSING = """
r2o
r2o nosuchverb
r2o shards --shards {new}/s
r2o shards --images '' --shards {new}/s
r2o shards --images {in}/nowhere --shards {new}/s
r2o shards --images {in}/empty --shards {new}/s
r2o shards --images {in}/notes --shards {new}/s
r2o shards --images {in}/small.yaml --shards {new}/s
r2o shards --images {in}/photos --shards {in}/notes
r2o shards --images {in}/photos --shards {in}/small.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/nowhere.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-key.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-section.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-list.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-syntax.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-base.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-value.yaml
r2o shards --images {in}/photos --shards {new}/s --config {in}/wrong-backend.yaml
r2o shards --images {in}/photos --shards {new}/s --set shards.sed=1
r2o shards --images {in}/photos --shards {new}/s --set shard.seed=1
r2o shards --images {in}/photos --shards {new}/s --set seed
r2o shards --images {in}/photos --shards {new}/s --set shards.superpixels.size=4
r2o shards --images {in}/photos --shards {new}/s --runtime-env {in}/nowhere.yaml
r2o shards --images {in}/photos --shards {new}/s --set shards.source.names={in}/nowhere
r2o shards --images {in}/coco --shards {new}/s --set shards.source.split=val2017
r2o shards --images {scenes}/images --shards {shards} --config {in}/small.yaml --set shards.seed=1
r2o shards --images {in}/photos --shards {shards} --config {in}/small.yaml
r2o verify --shards {new}/s
r2o verify --shards {shards} --deep --workers 1
r2o verify --shards {bad}/flipped --workers 1
r2o verify --shards {bad}/missing --workers 1
r2o verify --shards {bad}/flipped --repair
r2o verify --shards {bad}/cut
r2o preview --shards {bad}/empty --out {new}/x.png
r2o preview --shards {shards} --out {bad}/x.png --count 0
r2o preview --shards {shards} --out {new}/x.png --count 4 --set nonsense=1
preprocess.make_shards
preprocess.make_shards --images {in}/nowhere --shards {new}/s
preprocess.make_shards --images {in}/photos --shards {new}/s --set shards.count=0
preprocess.verify
preprocess.verify --shards {bad}/later
preprocess.verify --shards {bad}/missing --repair --images {in}/photos --workers 1
preprocess.preview --shards {shards} --out {new}/x.png
preprocess.preview --shards {shards} --out {bad}/x.png --count 0
preprocess.preview --shards {shards} --out {bad}/x.png --shard 99
preprocess.preview --shards {shards} --out {bad}/x.png --key 999
preprocess.preview --shards {shards} --out {bad}/x.png --map slic
preprocess.preview --shards {bad}/missing --out {bad}/x.png
preprocess.scenes
preprocess.scenes --out {in}/small.yaml
preprocess.scenes --out {in}/notes
preprocess.scenes --out {new}/s --set scenes.objects=[5,2]
preprocess.scenes --out {new}/s --set scenes.shapes=[disk]
"""
TRAINING = """
r2o pretrain
r2o pretrain --dry-run
r2o pretrain --dry-run --num-samples many
r2o pretrain --dry-run --num-samples 100
r2o pretrain --dry-run --num-samples 5000 --nproc 3
r2o pretrain --dry-run --num-samples 5000 --set pretrain.optim.base_lrr=3
r2o pretrain --dry-run --num-samples 5000 --set pretrain.run.local_batch_size=32
r2o pretrain --dry-run --num-samples 5000 --set pretrain.model.backbone=vit_s_16 pretrain.data.image_size=100
r2o pretrain --shards {new}/s --run {new}/r
r2o pretrain --shards {bad}/later --run {new}/r --config {in}/small.yaml
r2o pretrain --shards {shards} --run {in}/small.yaml --config {in}/small.yaml
r2o pretrain --shards {shards} --run {new}/r
r2o export --run {run} --out {new}/w.pth --format keras
r2o export --run {run} --out {new}/w.pkl
r2o eval-voc --run {run}
r2o run {in}/nowhere.yaml
r2o run {in}/small.yaml --work {in}/small.yaml
r2o run {in}/small.yaml --work {bad}/theirs
r2o run {in}/small.yaml --work {new}/w --set workflow.images={in}/nowhere
r2o run {in}/small.yaml --work {new}/w --set workflow.nproc=3
r2o status {in}/small.yaml --work {bad}/state
r2o status {in}/small.yaml --work {new}/w --set scenes.seed=x
train.pretrain
train.pretrain --shards {new}/s --run {new}/r --config {in}/small.yaml
train.pretrain --shards {shards} --run {run} --config {in}/small.yaml --set pretrain.optim.base_lr=2
train.pretrain --shards {shards} --run {new}/r --config {in}/small.yaml --set pretrain.global_batch_size=32
train.pretrain --shards {shards} --run {new}/r --config {in}/small.yaml --set pretrain.data.superpixel_maps.slic=9
train.pretrain --shards {shards} --run {new}/r --config {in}/small.yaml --init {in}/nowhere.pth
train.pretrain --shards {shards} --run {new}/r --config {in}/small.yaml --init {in}/small.yaml
train.pretrain --shards {shards} --run {bad}/damaged-run --config {in}/small.yaml
train.pretrain --shards {bad}/flipped --run {bad}/r --config {in}/small.yaml
train.pretrain --shards {bad}/missing --run {bad}/r --config {in}/small.yaml
train.export
train.export --run {new}/r --out {new}/w.pth
train.export --run {bad}/empty --out {new}/w.pth
train.export --run {run} --out {run}/backbone.pt
train.export --run {run} --out {bad}/folder.pth
train.export --run {run} --out {new}/w.pth --checkpoint {in}/nowhere.pt
train.export --run {bad}/garbage-run --out {new}/w.pth
train.export --run {bad}/bare-run --out {new}/w.pth
train.evals.voc
train.evals.voc --run {new}/r --voc {voc} --out {new}/e
train.evals.voc --run {bad}/empty --voc {voc} --out {new}/e
train.evals.voc --run {run} --voc {in}/notes --out {new}/e
train.evals.voc --run {run} --voc {bad}/voc --out {new}/e
train.evals.voc --run {run} --voc {voc} --out {new}/e --set eval_voc.itertions=3
train.evals.voc --run {run} --voc {voc} --out {new}/e --set eval_voc.seeds=[1,1]
train.evals.voc --run {run} --voc {voc} --out {new}/e --set eval_voc.scale_range=[2,0.5]
train.evals.voc --run {run} --voc {voc} --out {new}/e --set eval_voc.val_list=nothing
train.evals.voc --run {run} --voc {voc} --out {new}/e --set eval_voc.report_classes=[cow]
"""


def preprocessing_mistakes(checkout: Checkout, _: Checkout) -> dict[str, str]:
    """Exit codes and messages where scenes, shards and pictures of them are wanted."""
    return _said(checkout, PREPROCESSING)


def training_mistakes(checkout: Checkout, _: Checkout) -> dict[str, str]:
    """Exit codes and messages where runs, exports and evaluations are wanted."""
    return _said(checkout, TRAINING)


def _said(checkout: Checkout, lines: str) -> dict[str, str]:
    """What each line says, and what the lines have left where nothing was to be."""
    bad, new = checkout.work / "bad", checkout.work / "new"
    if not bad.exists():
        spoil(checkout.small, bad)
    places = {
        "in": checkout.inputs,
        "run": checkout.small / "pretrain",
        "shards": checkout.small / "shards",
        "scenes": checkout.small / "scenes",
        "voc": checkout.small / "scenes" / "VOCdevkit",
        "bad": bad,
        "new": new,
    }
    said = {}
    for line in lines.strip().splitlines():
        module, *words = [word.format(**places) for word in shlex.split(line)]
        done = checkout.run("-m", "pipeline.cli" if module == "r2o" else module, *words)
        said[line] = checkout.told(done)
    said["left behind"] = "\n".join(sorted(str(path.relative_to(new)) for path in new.rglob("*")))
    return said


def spoil(small: Path, bad: Path) -> None:
    """Make copies of a small run's results with a fault each."""
    shards, run = small / "shards", small / "pretrain"
    for name in ("flipped", "missing", "cut", "later"):
        shutil.copytree(shards, bad / name)
    tar = bytearray((shards / "r2o-000001.tar").read_bytes())
    tar[len(tar) // 2] ^= 0xFF
    (bad / "flipped" / "r2o-000001.tar").write_bytes(tar)
    (bad / "missing" / "r2o-000000.tar").unlink()
    (bad / "missing" / "quarantine.jsonl").unlink()
    (bad / "missing" / "r2o-000099.tar").touch()
    (bad / "cut" / "manifest.json").write_text("{")
    manifest = json.loads((shards / "manifest.json").read_text())
    (bad / "later" / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    for name in ("empty", "folder.pth", "damaged-run", "garbage-run", "bare-run", "theirs/scenes", "state/.r2o"):
        (bad / name).mkdir(parents=True)
    (bad / "damaged-run" / "run.json").write_text("{")
    (bad / "garbage-run" / "backbone.pt").write_bytes(b"no weights")
    shutil.copy(run / "backbone.pt", bad / "bare-run")
    (bad / "theirs" / "scenes" / "mine.txt").write_text("not of r2o")
    (bad / "state" / ".r2o" / "scenes.json").write_text("{")
    shutil.copytree(small / "scenes" / "VOCdevkit" / "VOC2012", bad / "voc")
    next(iter(sorted((bad / "voc" / "JPEGImages").iterdir()))).unlink()
