"""The part `learn`: what four methods learn in equal seconds, told by frozen features beside those of random weights.

Each method is timed for some steps. So each gets as many epochs as take its share of the time, and all schedules end.
The runs follow one after the other in this process, which has paid for imports and for the device; each is scored at
once. Asked to end, it tells what it has: a run writes a checkpoint and ends.
"""

from __future__ import annotations

import signal
import tarfile
import time
from pathlib import Path

from pipeline.artifacts.run_files import BACKBONE_NAME, CHECKPOINTS_FOLDER
from pipeline.foundation.exit_codes import EXIT_REQUEUE
from pipeline.foundation.signals import StopSignal, stop_signals_raise
from tests.gpu import frozen
from tests.gpu.device import DEVICE
from tests.gpu.methods import CONFIG, METHODS, SIZE, sets_of, settings_of
from tests.gpu.pace import epochs_of_equal_seconds, images_a_second, images_of_an_epoch
from tests.gpu.places import DRY, OUT, RUNS, UNTIL, shards
from tests.gpu.runs import afresh, arguments
from tests.gpu.telling import check, tell
from train import pretrain as trainer
from train.run.log import read_log

NAME = "learn"
AROUND = 6.0  # seconds of a run that are neither steps nor scoring: its workers' start, checkpoints, pictures
LAST = 8.0  # for packing, and for what took longer than thought
RANDOM = ("random", frozen.BASELINE)
ENOUGH = 100  # epochs: in the middle of so many, methods are timed


def main() -> None:
    folder, where = afresh(NAME), shards("nette")
    folder.mkdir()
    with stop_signals_raise():
        try:
            study(folder, where)
        except StopSignal as asked:
            tell("asked to end", signal=asked.name)
    pack(folder)


def study(folder: Path, where: Path) -> None:
    """Rates, random weights, then run after run."""
    rates = {}
    for method in METHODS:
        with check(f"pace of {method}") as c:
            rates[method] = c["images_s"] = round(images_a_second(settings_of(method, ENOUGH), where), 1)
    scored_from = time.monotonic()
    data, note = frozen.annotated(where)
    with check("random weights scored"):
        frozen.score_weights(frozen.BASELINE, data, 'baselines=["random"]', backbone="resnet18")
    for label in RANDOM:
        tell_scores(label, note)
    scoring = (time.monotonic() - scored_from) / 2
    each = (UNTIL - time.monotonic() - LAST) / max(len(rates), 1) - AROUND - scoring
    epochs = epochs_of(rates, where, each)
    tell(
        "epochs of equal seconds", device=DEVICE.type, size=SIZE, seconds=round(each, 1), images_s=rates, epochs=epochs
    )
    for method in rates:
        require_time()
        if run(method, epochs[method], where):
            require_time()
            with check(f"{method} scored"):
                frozen.score_weights(str(folder / method), data, "baselines=[]")
            tell_scores(method, note)


def require_time() -> None:
    """Raises StopSignal where none is left: a run that is asked to end in its last step ends as others do."""
    if time.monotonic() >= UNTIL:
        raise StopSignal(signal.SIGTERM)


def epochs_of(rates: dict[str, float], where: Path, seconds: float) -> dict[str, int]:
    """By method; one of each in a dry day."""
    if DRY or not rates:
        return dict.fromkeys(rates, 1)
    images = images_of_an_epoch(settings_of("r2o", 1), where)
    return epochs_of_equal_seconds(rates, images=images, seconds=max(seconds, 1.0))


def run(method: str, epochs: int, where: Path) -> bool:
    """One run as `r2o pretrain` starts it, but in this process; whether it came to its end.

    Raises:
        StopSignal: it was asked to end before.
    """
    name, code = f"{NAME}/{method}", None
    with check(f"learning, {method}") as c:
        c["method"], c["device"] = method, DEVICE.type
        code = c["exit"] = trainer.main(arguments(name, where, *sets_of(method, epochs), config=CONFIG))
        c.update(figures_of(read_log(RUNS / name), batch=settings_of(method, epochs).global_batch_size))
        c["epochs"], c["ok"] = epochs, code in (0, EXIT_REQUEUE)
    if code == EXIT_REQUEUE:
        raise StopSignal(signal.SIGTERM)
    return code == 0


def tell_scores(label: str, note: str) -> None:
    """What some weights scored, where they were."""
    if found := frozen.figures_of(label):
        above = {} if label in RANDOM else frozen.above_baseline(label)
        tell("frozen scores", weights=label, note=note, scores=found, above_random_bn=above)


def figures_of(log: list[dict[str, float]], *, batch: int) -> dict[str, object]:
    """Steps and seconds in all; the rest from the run's beginning to its end, in five places."""
    if not log:
        return {}
    lines = [log[i * (len(log) - 1) // 4] for i in range(5)]
    rates = sorted(line["images_per_second"] for line in log)
    seconds, done = 0.0, 0
    for line in log:
        steps = int(line["step"]) + 1 - done
        seconds, done = seconds + steps * batch / line["images_per_second"], done + steps
    return {
        "steps": done,
        "images": done * batch,
        "training_s": round(seconds, 1),
        "loss": [round(line["loss"], 4) for line in lines],
        "std": [round(line["prediction_std"], 3) for line in lines],
        "images_s": round(rates[len(rates) // 2], 1),
    }


def pack(folder: Path) -> None:
    """The runs without their weights, as learn.tgz."""
    heavy = {CHECKPOINTS_FOLDER, BACKBONE_NAME}
    with tarfile.open(OUT / "learn.tgz", "w:gz") as archive:
        archive.add(folder, NAME, filter=lambda member: None if heavy & set(Path(member.name).parts) else member)


if __name__ == "__main__":
    main()
