"""PASCAL VOC segmentation (A.2): `python -m train.evals.voc --run RUN --voc VOC [--config F] [--set …] [--out DIR]`.

Every pair of (init, seed) is fine-tuned and scored on its own and stored at once; what is finished and unchanged is not
done again. `results.json` is written last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from jaxtyping import UInt8
from torch import Tensor

from pipeline.artifacts.fingerprint import fingerprint
from pipeline.artifacts.results import RESULTS_FORMAT_VERSION, encode_results
from pipeline.artifacts.run_files import BACKBONE_NAME, PREDICTIONS_NAME, RESULTS_NAME, evaluation_folder
from pipeline.foundation.errors import InputError, exit_code_of, os_errors_named
from pipeline.foundation.files import refuse_link, sha256_of, write_atomic
from pipeline.foundation.progress import say
from train.config.evals import EvalVocSettings, load_evaluation_settings
from train.data.resize import resized
from train.evals.segmentation.fcn import FCN
from train.evals.segmentation.fine_tune import Normalisation, TrainingExamples, evaluate, fine_tune, smaller_fine_tuning
from train.evals.segmentation.metrics import check_report_classes, is_confusion, scores_of, summary_of, table_of
from train.evals.segmentation.pictures import prediction_strip, predictions_sheet
from train.evals.segmentation.voc_folder import VocFolder, VocSplit
from train.evals.trials import Outcome, Trial, TrialSet, remove_outdated
from train.models.backbone_file import ExportedBackbone, load_run_backbone
from train.models.initial import MEASURED_IMAGES, InitName, initial_backbone
from train.out_of_memory import memory_errors_named

PROTOCOL_VERSION = 1  # raised when the code gives other numbers for equal settings
PREVIEWS = 8
_NOT_PROTOCOL = {"seeds", "inits", "report_classes"}


@dataclass(frozen=True, kw_only=True)
class VocEvaluation:
    """An evaluation whose inputs have been read and checked."""

    settings: EvalVocSettings
    trials: TrialSet
    classes: tuple[str, ...]
    train: VocSplit
    val: VocSplit

    @property
    def out(self) -> Path:
        """Where results go."""
        return self.trials.folder

    @property
    def previews(self) -> list[int]:
        """Indices of the val images that are shown: evenly spread over the list."""
        return sorted({int(i) for i in np.linspace(0, len(self.val) - 1, PREVIEWS)})


def prepare(run: Path, voc: Path, *, settings: EvalVocSettings, out: Path | None = None) -> VocEvaluation:
    """Read and check all inputs; nothing is written but the empty folder `out`.

    Raises:
        InputError: RUN is no finished run, VOC is no such folder or has bad files, or `out` cannot be made.
    """
    if out is None:
        refuse_link(run / evaluation_folder("voc"))
    backbone, folder = load_run_backbone(run), VocFolder.open(voc)
    check_report_classes(settings.report_classes, classes=folder.classes)
    train = folder.split(settings.train_list, masks=settings.train_masks, cache_mib=settings.cache_mib)
    val = folder.split(settings.val_list)
    trials = TrialSet(
        inits=_inits_of(settings, backbone),
        seeds=settings.seeds,
        protocol={k: v for k, v in settings.content().items() if k not in _NOT_PROTOCOL},
        version=PROTOCOL_VERSION,
        data={"classes": folder.classes, "train": train.digest, "val": val.digest},
        backbone=backbone,
        backbone_sha256=sha256_of(run / BACKBONE_NAME),
        folder=out or run / evaluation_folder("voc"),
    )
    evaluation = VocEvaluation(settings=settings, trials=trials, classes=folder.classes, train=train, val=val)
    try:
        evaluation.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{evaluation.out} cannot be made ({error.strerror}); choose another --out") from None
    return evaluation


def run_evaluation(evaluation: VocEvaluation) -> dict[str, Any]:
    """Do what is not done yet, and write `predictions.png` and `results.json`; returns the latter's content."""
    settings, trials = evaluation.settings, evaluation.trials
    identity = trials.fingerprint(report_classes=settings.report_classes)
    remove_outdated(evaluation.out / RESULTS_NAME, identity)
    scores: dict[str, dict[int, dict[str, Any]]] = {init: {} for init in trials.inits}
    records = trials.records(
        lambda trial: _score(evaluation, trial),
        fits=lambda record: is_confusion(record.get("confusion"), pixels=evaluation.val.pixels),
    )
    for (init, seed), record in records.items():
        scores[init][seed] = scores_of(
            record["confusion"], classes=evaluation.classes, report_classes=settings.report_classes
        )
    results = {
        "format_version": RESULTS_FORMAT_VERSION,
        "fingerprint": identity,
        "protocol": settings.model_dump(mode="json"),
        "backbone": {"name": trials.backbone.name, "run_fingerprint": trials.backbone.fingerprint},
        "data": {"fingerprint": fingerprint(**trials.data)},
        "classes": evaluation.classes,
        "train_images": len(evaluation.train),
        "val_images": len(evaluation.val),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "inits": {init: summary_of(by_seed) for init, by_seed in scores.items()},
    }
    write_atomic(evaluation.out / PREDICTIONS_NAME, _picture(evaluation))
    write_atomic(evaluation.out / RESULTS_NAME, encode_results(results))
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
    settings = load_evaluation_settings(EvalVocSettings, arguments.config, arguments.set)
    with _memory_named("eval-voc", settings):
        evaluation = prepare(arguments.run, arguments.voc, settings=settings, out=arguments.out)
        with os_errors_named(evaluation.out):
            results = run_evaluation(evaluation)
    print(table_of(results["inits"], classes=evaluation.classes, report_classes=settings.report_classes))
    print(f"{len(evaluation.val)} images; {evaluation.out / RESULTS_NAME}, {evaluation.out / PREDICTIONS_NAME}")
    return 0


def _memory_named(doing: str, settings: EvalVocSettings) -> AbstractContextManager[None]:
    return memory_errors_named(doing, lambda lack: smaller_fine_tuning(settings, lack), _device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _inits_of(settings: EvalVocSettings, backbone: ExportedBackbone) -> list[InitName]:
    """Those of the settings; without batch norm "random-bn" is "random", and is left out.

    Raises:
        InputError: none is left.
    """
    if "random-bn" not in settings.inits or not backbone.name.startswith("vit"):
        return list(settings.inits)
    inits: list[InitName] = [init for init in settings.inits if init != "random-bn"]
    if not inits:
        raise InputError(f"eval_voc.inits: {backbone.name} has no batch norm, so random-bn is random; name that")
    say(f"eval_voc.inits: {backbone.name} has no batch norm, so random-bn would be random; left out")
    return inits


def _measured_images(
    evaluation: VocEvaluation, device: torch.device
) -> Iterator[UInt8[Tensor, "1 3 crop_size crop_size"]]:
    """Training images, evenly spaced over the list; each is resized as a whole to the size of the crops."""
    train, size = evaluation.train, evaluation.settings.crop_size
    count = min(MEASURED_IMAGES, len(train))
    for place in range(count):
        pixels = torch.from_numpy(train[place * len(train) // count].image).permute(2, 0, 1)
        yield resized(pixels, size)[None].to(device)


def _score(evaluation: VocEvaluation, trial: Trial) -> Outcome:
    """Fine-tune from one init with one seed, and score."""
    settings, device = evaluation.settings, _device()
    exported, (init, seed) = evaluation.trials.backbone, trial
    normalisation, label = Normalisation(exported.mean, exported.std), f"{init} seed {seed}"
    backbone = initial_backbone(
        init,
        exported=exported,
        seed=seed,
        dilate_c5=True,
        images=lambda: _measured_images(evaluation, device),
        device=device,
    )
    model = FCN(backbone, num_classes=len(evaluation.classes), settings=settings, seed=seed)
    examples = TrainingExamples(data=evaluation.train, settings=settings, normalisation=normalisation, seed=seed)
    with _memory_named(f"eval-voc, {label} train", settings):
        curve = fine_tune(model, examples, device=device, label=f"{label} train")
    with _memory_named(f"eval-voc, {label} evaluate", settings):
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
    strip = prediction_strip([found.predictions[index] for index in evaluation.previews])
    return Outcome({"confusion": found.confusion.tolist(), "loss": [point._asdict() for point in curve]}, strip)


def _picture(evaluation: VocEvaluation) -> bytes:
    seed = evaluation.settings.seeds[0]
    samples = [evaluation.val[index] for index in evaluation.previews]
    trials = evaluation.trials
    strips = {f"{init}, seed {seed}": trials.picture(Trial(init, seed)) for init in trials.inits}
    return predictions_sheet(samples, strips)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
