"""PASCAL VOC segmentation (A.2): `python -m train.evals.voc --run RUN --voc VOC [--config F] [--set …] [--out DIR]`.

Every pair of (init, seed) is fine-tuned and scored on its own and stored at once; what is finished and unchanged is not
done again. `results.json` is written last.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.run_files import BACKBONE_NAME, PREDICTIONS_NAME, RESULTS_NAME, evaluation_folder
from pipeline.foundation.errors import InputError, exit_code_of
from pipeline.foundation.files import sha256_of, write_atomic
from pipeline.foundation.settings import load_settings
from train.config.evals import EvalVocSettings
from train.evals.segmentation.fcn import FCN
from train.evals.segmentation.fine_tune import Normalisation, TrainingExamples, evaluate, fine_tune
from train.evals.segmentation.metrics import check_report_classes, scores_of, summary_of, table_of
from train.evals.segmentation.pictures import prediction_strip, predictions_sheet
from train.evals.segmentation.voc_folder import VocFolder, VocSplit
from train.models.backbone_file import ExportedBackbone, load_run_backbone
from train.models.initial import Init, initial_backbone

FORMAT_VERSION = 1
PROTOCOL_VERSION = 1  # raised when the code gives other numbers for equal settings
PREVIEWS = 8
_NOT_PROTOCOL = {"seeds", "inits", "report_classes"}


@dataclass(frozen=True, kw_only=True)
class VocEvaluation:
    """All that decides the numbers of an evaluation, and where they go."""

    settings: EvalVocSettings
    backbone: ExportedBackbone
    backbone_sha256: str
    classes: tuple[str, ...]
    train: VocSplit
    val: VocSplit
    out: Path

    @property
    def previews(self) -> list[int]:
        """Indices of the val images that are shown: evenly spread over the list."""
        return sorted({int(i) for i in np.linspace(0, len(self.val) - 1, PREVIEWS)})

    def pair_fingerprint(self, init: Init, seed: int) -> str:
        """Hash of protocol, weights, data and seed. A random init takes only the backbone's name and normalisation."""
        backbone = self.backbone
        weights = {"sha256": self.backbone_sha256} if init == "run" else {"random": backbone.name}
        return fingerprint(
            protocol={k: v for k, v in self.settings.content().items() if k not in _NOT_PROTOCOL},
            version=PROTOCOL_VERSION,
            weights={**weights, "mean": backbone.mean, "std": backbone.std},
            data={"classes": self.classes, "train": self.train.digest, "val": self.val.digest},
            pair=[init, seed],
        )

    def fingerprint(self) -> str:
        """Hash of all pairs and of what is reported of them."""
        pairs = {f"{i}-{s}": self.pair_fingerprint(i, s) for i in self.settings.inits for s in self.settings.seeds}
        return fingerprint(pairs=pairs, report_classes=self.settings.report_classes, run=self.backbone.fingerprint)


def prepare(run: Path, voc: Path, *, settings: EvalVocSettings, out: Path | None = None) -> VocEvaluation:
    """Read and check all inputs; nothing is written but the empty folder `out`.

    Raises:
        InputError: RUN is no finished run, VOC is no such folder or has bad files, or `out` cannot be made.
    """
    backbone, folder = load_run_backbone(run), VocFolder.open(voc)
    check_report_classes(settings.report_classes, classes=folder.classes)
    train = folder.split(settings.train_list, masks=settings.train_masks, cache_mib=settings.cache_mib)
    evaluation = VocEvaluation(
        settings=settings,
        backbone=backbone,
        backbone_sha256=sha256_of(run / BACKBONE_NAME),
        classes=folder.classes,
        train=train,
        val=folder.split(settings.val_list),
        out=out or run / evaluation_folder("voc"),
    )
    try:
        evaluation.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{evaluation.out} cannot be made ({error.strerror}); choose another --out") from None
    return evaluation


def run_evaluation(evaluation: VocEvaluation) -> dict[str, Any]:
    """Do what is not done yet, and write `predictions.png` and `results.json`; returns the latter's content."""
    settings, identity = evaluation.settings, evaluation.fingerprint()
    _remove_outdated(evaluation.out / RESULTS_NAME, identity)
    pairs = {(init, seed): _finished_pair(evaluation, init, seed) for seed in settings.seeds for init in settings.inits}
    scores: dict[str, dict[int, dict[str, Any]]] = {init: {} for init in settings.inits}
    for (init, seed), pair in pairs.items():
        pair = pair or _run_pair(evaluation, init, seed)
        scores[init][seed] = scores_of(
            pair["confusion"], classes=evaluation.classes, report_classes=settings.report_classes
        )
    results = {
        "format_version": FORMAT_VERSION,
        "fingerprint": identity,
        "protocol": settings.model_dump(mode="json"),
        "backbone": {"name": evaluation.backbone.name, "run_fingerprint": evaluation.backbone.fingerprint},
        "classes": evaluation.classes,
        "train_images": len(evaluation.train),
        "val_images": len(evaluation.val),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "inits": {init: summary_of(by_seed) for init, by_seed in scores.items()},
    }
    write_atomic(evaluation.out / PREDICTIONS_NAME, _picture(evaluation))
    write_atomic(evaluation.out / RESULTS_NAME, _json(results))
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.evals.voc", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished pretraining run")
    parser.add_argument("--voc", type=Path, required=True, help="VOC2012, or the VOCdevkit above it")
    parser.add_argument("--config", type=Path, help="YAML with a section eval_voc")
    parser.add_argument("--set", action="append", default=[], metavar="eval_voc.key=value", help="override a setting")
    parser.add_argument("--out", type=Path, help="where results go; default RUN/eval-voc")
    arguments = parser.parse_args(argv)
    settings = load_settings(EvalVocSettings, "eval_voc", arguments.config, arguments.set)
    evaluation = prepare(arguments.run, arguments.voc, settings=settings, out=arguments.out)
    results = run_evaluation(evaluation)
    print(table_of(results["inits"], classes=evaluation.classes, report_classes=settings.report_classes))
    print(f"{len(evaluation.val)} images; {evaluation.out / RESULTS_NAME}, {evaluation.out / PREDICTIONS_NAME}")
    return 0


def _run_pair(evaluation: VocEvaluation, init: Init, seed: int) -> dict[str, Any]:
    """Fine-tune from one init with one seed, score, and store: the strip of predictions first, the JSON last."""
    settings, device = evaluation.settings, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    normalisation, label = Normalisation(evaluation.backbone.mean, evaluation.backbone.std), f"{init} seed {seed}"
    backbone = initial_backbone(init, exported=evaluation.backbone, seed=seed, dilate_c5=True)
    model = FCN(backbone, num_classes=len(evaluation.classes), settings=settings, seed=seed)
    examples = TrainingExamples(data=evaluation.train, settings=settings, normalisation=normalisation, seed=seed)
    curve = fine_tune(model, examples, device=device, label=f"{label} train")
    found = evaluate(
        model,
        evaluation.val,
        settings=settings,
        normalisation=normalisation,
        num_classes=len(evaluation.classes),
        device=device,
        keep=evaluation.previews,
        label=f"{label} evaluate",
    )
    strip = _strip_path(evaluation, init, seed)
    write_atomic(strip, prediction_strip([found.predictions[index] for index in evaluation.previews]))
    pair = {
        "format_version": FORMAT_VERSION,
        "fingerprint": evaluation.pair_fingerprint(init, seed),
        "predictions_sha256": sha256_of(strip),
        "confusion": found.confusion.tolist(),
        "loss": [point._asdict() for point in curve],
    }
    write_atomic(_pair_path(evaluation, init, seed), _json(pair))
    return pair


def _finished_pair(evaluation: VocEvaluation, init: Init, seed: int) -> dict[str, Any] | None:
    """What `_run_pair` stored, if it is whole and of the same fingerprint."""
    stored = _read_json(_pair_path(evaluation, init, seed))
    strip = _strip_path(evaluation, init, seed)
    if stored.get("fingerprint") != evaluation.pair_fingerprint(init, seed) or not strip.is_file():
        return None
    if stored["predictions_sha256"] != sha256_of(strip):
        return None
    print(f"{init} seed {seed}: finished before and unchanged", file=sys.stderr)
    return stored


def _picture(evaluation: VocEvaluation) -> bytes:
    seed = evaluation.settings.seeds[0]
    samples = [evaluation.val[index] for index in evaluation.previews]
    strips = {
        f"{init}, seed {seed}": _strip_path(evaluation, init, seed).read_bytes() for init in evaluation.settings.inits
    }
    return predictions_sheet(samples, strips)


def _pair_path(evaluation: VocEvaluation, init: Init, seed: int) -> Path:
    return evaluation.out / f"{init}-seed{seed}.json"


def _strip_path(evaluation: VocEvaluation, init: Init, seed: int) -> Path:
    return evaluation.out / f"{init}-seed{seed}.png"


def _remove_outdated(path: Path, identity: str) -> None:
    """Results of other settings or inputs must not stand beside pairs of these."""
    if _read_json(path).get("fingerprint") != identity:
        path.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    """A stored JSON object; empty where there is none or it is not one of ours, which means: make it again."""
    try:
        loaded = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) and loaded.get("format_version") == FORMAT_VERSION else {}


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
