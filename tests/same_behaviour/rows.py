"""What is compared: each function measures one checkout, as texts by name.

Rows of upgrades measure what the checkout makes of what BEFORE has begun.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.same_behaviour.checkout import BrokenError, Checkout, stop_when, succeeded
from tests.same_behaviour.mistakes import preprocessing_mistakes, training_mistakes

LIBRARIES = ("numpy", "pillow", "simplejpeg", "fast-slic", "pydantic", "ray", "torch", "torchvision", "safetensors")
OWN_CODE = """
import importlib.metadata, json, sys, pipeline, preprocess, train
print(json.dumps([package.__file__ for package in (pipeline, preprocess, train)]))
print(json.dumps({name: importlib.metadata.version(name) for name in sys.argv[1:]}))
"""
GOLDEN = """
import json, sys
from pathlib import Path
from tests.train.test_golden import golden_shards, small_run
print(json.dumps([repr(figures.loss) for figures in small_run(golden_shards(Path(sys.argv[1])))]))
"""
VERBS = ("", "scenes", "shards", "verify", "preview", "pretrain", "export", "eval-voc", "run", "status")
MODULES = ("scenes", "make_shards", "verify", "preview")
PROGRAMS = (*(f"preprocess.{name}" for name in MODULES), "train.pretrain", "train.export", "train.evals.voc")
SAMPLES, PROCESSES = 1_281_167, (1, 128)
SOURCES = ("list.txt", "images.tar", "samples.tar", "train.parquet", "coco")
FORMATS = ("torchvision", "timm", "detectron2", "mmseg")
VARIANTS = {  # settings of pretrain; each a run of one epoch
    "authors": "model.head_output_bias=true model.concatenate_views=true refine.assign=superpixel objective.rows=all "
    "objective.min_pool_area=1.0 objective.roi_aligned=false optim.lars=release optim.lr_scale_by_clusters=16 "
    "optim.target_ema_batch_size=32 augment.flip_probability=1.0",
    "detcon": "data.view_superpixels=true 'data.superpixel_maps={grid: 9}' refine.clustering=none "
    "objective.loss=detcon_b objective.view_masks=superpixels objective.masks_per_view=4",
    "contrast": "objective.loss=nt_xent objective.masks_per_view=4 refine.regions=grid curriculum.schedule=piecewise",
    "cells": "refine.regions=cells refine.normalize_features=false data.augment=host curriculum.schedule=linear",
    "image": "refine.clustering=none refine.regions=image run.precision=bf16 run.channels_last=true data.lane_groups=2",
    "vit": "model.backbone=vit_s_16",
    "passes": "run.local_batch_size=4 run.on_other_batch=scale run.accumulation=2 data.on_damage=skip",
    "ranks": "run.local_batch_size=4",
    "init": "seed=1",
}
ONE_EPOCH = "epochs=1 curriculum.hold_epochs=0"
OF_FROZEN = r"/eval-frozen/"  # its results hold the seconds that they took
NOT_OF_RESUMED = r"^run\.json$|^eval-voc/|^tensorboard/"

Values = dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `after_run`: it needs what the row `run` leaves."""

    measure: Callable[[Checkout, Checkout], Values]
    after_run: bool = False


def own_code(checkout: Checkout, _: Checkout) -> Values:
    """That its own packages are loaded, and which libraries. Raises BrokenError."""
    done = succeeded(checkout.run("-c", OWN_CODE, *LIBRARIES))
    files, versions = map(json.loads, done.out.splitlines())
    if strangers := [file for file in files if not str(file).startswith(f"{checkout.root}/")]:
        raise BrokenError(f"loads {strangers[0]}, which is not of {checkout.root}")
    return {f"version of {name}": version for name, version in versions.items()}


def golden(checkout: Checkout, _: Checkout) -> Values:
    """The losses of the golden run, to the last bit."""
    folder = checkout.work / "golden"
    folder.mkdir()
    done = succeeded(checkout.run("-c", GOLDEN, folder))
    return {f"loss of step {step}": loss for step, loss in enumerate(json.loads(done.out))}


def demo(checkout: Checkout, _: Checkout) -> Values:
    """Every file of the demo's scenes and shards, and its contact sheet."""
    folder, config = checkout.work / "demo", "--config=configs/demo.yaml"
    checkout.r2o("scenes", config, f"--out={folder / 'scenes'}")
    images, shards = f"--images={folder / 'scenes' / 'images'}", f"--shards={folder / 'shards'}"
    checkout.r2o("shards", images, shards, config, "--set", "shards.workers=1")
    return checkout.tree(folder)


def odd_images(checkout: Checkout, _: Checkout) -> Values:
    """Shards of images in every form, too many of them bad; and their check."""
    folder, settings = checkout.work / "odd", ("--config", checkout.recipe, "--set", "shards.max_bad_fraction=0.1")
    images, shards = f"--images={checkout.inputs / 'odd'}", f"--shards={folder / 'shards'}"
    told = {name: checkout.told(checkout.run("-m", "pipeline.cli", "shards", images, shards, *settings))
            for name in ("shards", "shards again")}  # fmt: skip
    told["verify"] = checkout.told(checkout.r2o("verify", shards, "--deep", "--workers=1"))
    run = f"--run={folder / 'run'}"
    told["pretrain"] = checkout.told(checkout.run("-m", "pipeline.cli", "pretrain", shards, run, *settings[:2]))
    return told | checkout.tree(folder)


def sources(checkout: Checkout, _: Checkout) -> Values:
    """Shards of the same images out of every kind of source."""
    folder = checkout.work / "sources"
    told = {}
    for name in SOURCES:
        places = f"--images={checkout.inputs / name}", f"--shards={folder / name}"
        told[name] = checkout.told(checkout.r2o("shards", *places, f"--config={checkout.recipe}"))
    return told | checkout.tree(folder)


def dry_runs(checkout: Checkout, _: Checkout) -> Values:
    """The plan of every configuration, for some numbers of processes."""
    told = {}
    for config in sorted((checkout.root / "configs").glob("*.yaml")):
        for count in PROCESSES:
            words = f"--config=configs/{config.name}", "--dry-run", f"--num-samples={SAMPLES}", f"--nproc={count}"
            done = checkout.run("-m", "pipeline.cli", "pretrain", *words)
            told[f"{config.name} on {count}"] = checkout.told(done, timed=False)
    return told


def plans(checkout: Checkout, _: Checkout) -> Values:
    """What the verbs say that start nothing."""
    places = f"--images={checkout.inputs / 'photos'}", f"--shards={checkout.work / 'none'}"
    work, small = f"--work={checkout.work / 'none'}", checkout.recipe
    lines: dict[str, tuple[object, ...]] = {
        "run, demo": ("run", "configs/demo.yaml", "--dry-run", work),
        "run, settings": ("run", small, "--dry-run", work, "--set", "workflow.nproc=2", "pretrain.seed=1"),
        "status": ("status", small, work),
        "shards": ("shards", *places, "--dry-run", f"--config={small}"),
        "version": ("--version",),
    }
    return {name: checkout.told(checkout.run("-m", "pipeline.cli", *words)) for name, words in lines.items()}


def helps(checkout: Checkout, _: Checkout) -> Values:
    """Every --help."""
    verbs = {f"r2o {verb}": ("pipeline.cli", *([verb] if verb else [])) for verb in VERBS}
    every = {**verbs, **{program: (program,) for program in PROGRAMS}}
    return {name: checkout.told(checkout.run("-m", *words, "--help"), timed=False) for name, words in every.items()}


def run(checkout: Checkout, _: Checkout) -> Values:
    """The whole pipeline by a small recipe: all that it says, and every file."""
    done = checkout.r2o("run", checkout.recipe, f"--work={checkout.small}")
    return {"said": checkout.told(done), **checkout.tree(checkout.small, without=OF_FROZEN)}


def variants(checkout: Checkout, _: Checkout) -> Values:
    """Runs with other settings of the method, of the data and of ranks."""
    weights = checkout.work / "init.pth"  # no safetensors: their bytes, which count, are others each time
    checkout.r2o("export", f"--run={checkout.small / 'pretrain'}", f"--out={weights}", "--format=timm")
    others = {"ranks": ["--nproc=2"], "init": [f"--init={weights}"]}
    told = {}
    for name, text in VARIANTS.items():
        folder = checkout.work / "variants" / name
        settings = [f"pretrain.{setting}" for setting in shlex.split(f"{ONE_EPOCH} {text}")]
        places = f"--shards={checkout.small / 'shards'}", f"--run={folder}", f"--config={checkout.recipe}"
        done = checkout.r2o("pretrain", *places, *others.get(name, []), "--set", *settings)
        told[f"{name}, said"] = checkout.told(done)
        told |= {f"{name}/{file}": value for file, value in checkout.tree(folder).items()}
        shutil.rmtree(folder)
    return told


def exports(checkout: Checkout, _: Checkout) -> Values:
    """The run's weights in every format, its heads, and those of a checkpoint."""
    folder, small = checkout.work / "exports", f"--run={checkout.small / 'pretrain'}"
    for name in FORMATS:
        for end in ("pth", "safetensors"):
            checkout.r2o("export", small, f"--format={name}", f"--out={folder / f'{name}-{end}.{end}'}")
    checkpoint = sorted((checkout.small / "pretrain" / "checkpoints").glob("*.pt"))[0]
    checkout.module("train.export", small, f"--out={folder / 'earlier.pt'}", f"--checkpoint={checkpoint}", "--heads")
    found = checkout.tree(folder)
    shutil.rmtree(folder)
    return found


def repair(checkout: Checkout, _: Checkout) -> Values:
    """Shards of which one was cut and one is gone, made whole again."""
    shards = checkout.work / "repaired"
    shutil.copytree(checkout.small / "shards", shards)
    (shards / "r2o-000001.tar").write_bytes(b"")
    (shards / "r2o-000003.index").unlink()
    images = f"--images={checkout.small / 'scenes' / 'images'}"
    done = checkout.r2o("verify", f"--shards={shards}", "--repair", images, "--workers=1", "--set", "shards.workers=1")
    return {"said": checkout.told(done), **checkout.tree(shards)}


def upgrade_shards(checkout: Checkout, before: Checkout) -> Values:
    """Shards that BEFORE makes at once, against shards that it begins and AFTER finishes."""
    shards, each = checkout.work / "begun" / "shards", "shards.images_per_shard=2"
    places = f"--images={checkout.inputs / 'photos'}", f"--shards={shards}"
    words = ("-m", "pipeline.cli", "shards", *places, f"--config={checkout.recipe}", "--set", each)
    if checkout is not before:
        stop_when(before.start(*words), signal.SIGINT, lambda: any((shards / ".job").glob("*.tar.json")), code=130)
    done = succeeded(checkout.run(*words))
    if checkout is not before and "going on: " not in done.err:
        raise BrokenError("it began anew, though some shards were there")
    return checkout.tree(shards.parent)


def upgrade_run(checkout: Checkout, before: Checkout) -> Values:
    """A run that BEFORE makes at once, against one that it begins and AFTER finishes."""
    if checkout is before:
        return checkout.tree(before.small / "pretrain", without=NOT_OF_RESUMED)
    folder = checkout.work / "stopped"
    places = f"--shards={before.small / 'shards'}", f"--run={folder}", f"--config={checkout.recipe}"
    log = folder / "log.jsonl"
    begun = before.start("-m", "pipeline.cli", "pretrain", *places)
    stop_when(begun, signal.SIGTERM, lambda: log.exists() and b"\n" in log.read_bytes(), code=75)
    done = checkout.r2o("pretrain", *places)
    if "going on after step" not in done.err:
        raise BrokenError("it began anew, though some steps were done")
    return checkout.tree(folder, without=NOT_OF_RESUMED)


def upgrade_work(checkout: Checkout, before: Checkout) -> Values:
    """What each verb makes of results that BEFORE has finished."""
    work, config = checkout.work / "upgraded", f"--config={checkout.recipe}"
    shutil.copytree(before.small, work)
    images, shards, small = (work / name for name in ("scenes/images", "shards", "pretrain"))
    voc = f"--voc={work / 'scenes' / 'VOCdevkit'}"
    lines: dict[str, tuple[object, ...]] = {
        "status": ("status", checkout.recipe, f"--work={work}"),
        "run": ("run", checkout.recipe, f"--work={work}"),
        "changed": ("status", checkout.recipe, f"--work={work}", "--set", "scenes.seed=1", "eval_voc.lr=0.1"),
        "shards": ("shards", f"--images={images}", f"--shards={shards}", config),
        "verify": ("verify", f"--shards={shards}", "--workers=1", "--deep"),
        "pretrain": ("pretrain", f"--shards={shards}", f"--run={small}", config),
        "eval-voc": ("eval-voc", f"--run={small}", voc, config, "--set", "eval_voc.seeds=[0,1,2]"),
    }
    told = {name: checkout.told(checkout.r2o(*words)) for name, words in lines.items()}
    return told | checkout.tree(work, without=OF_FROZEN)


ROWS = {
    "own-code": Row(measure=own_code),
    "golden": Row(measure=golden),
    "demo": Row(measure=demo),
    "odd-images": Row(measure=odd_images),
    "sources": Row(measure=sources),
    "dry-runs": Row(measure=dry_runs),
    "plans": Row(measure=plans),
    "help": Row(measure=helps),
    "run": Row(measure=run),
    "variants": Row(measure=variants, after_run=True),
    "exports": Row(measure=exports, after_run=True),
    "repair": Row(measure=repair, after_run=True),
    "preprocessing-mistakes": Row(measure=preprocessing_mistakes, after_run=True),
    "training-mistakes": Row(measure=training_mistakes, after_run=True),
    "upgrade-shards": Row(measure=upgrade_shards),
    "upgrade-run": Row(measure=upgrade_run, after_run=True),
    "upgrade-work": Row(measure=upgrade_work, after_run=True),
}
