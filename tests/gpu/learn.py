"""The part `learn`: what learning shows in the time that is left: neighbours of one class before and after.

ResNet-18 on Imagenette at 128 px. Asked to end, it asks the run, which writes a checkpoint and ends.
"""

from __future__ import annotations

import signal
import subprocess
import tarfile
from pathlib import Path

from pipeline.artifacts.run_files import BACKBONE_NAME, CHECKPOINTS_FOLDER
from pipeline.foundation.exit_codes import EXIT_REQUEUE
from tests.gpu.places import DRY, OUT, ROOT, shards
from tests.gpu.runs import FAST, TINY_IMAGES, afresh, pretrain
from tests.gpu.telling import tell
from train.run.log import read_log

NAME = "learn"
EPOCHS, EVERY, HOLD = (1, 1, 0) if DRY else (60, 10, 8)
SETS = [
    f"epochs={EPOCHS}",
    f"curriculum.hold_epochs={HOLD}",
    "global_batch_size=128",
    "data.image_size=128",
    "data.view_size=128",
    "augment.blur_kernel_size=13",
    f"run.probe_every_epochs={EVERY}",
    "run.probe_images=1400",
    f"run.panels_every_epochs={EVERY}",
    *FAST,
    *([*TINY_IMAGES, "global_batch_size=32"] if DRY else []),
]


def main() -> None:
    folder = afresh(NAME)
    command = pretrain(NAME, shards("nette"), *SETS, config=ROOT / "configs/imagenette_r18.yaml")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    said, _ = process.communicate()
    print(said[-6000:])
    probes = [(probe["epoch"], round(probe["knn_top1"], 4)) for probe in read_log(folder, figure="knn_top1")]
    ok = process.returncode in (0, EXIT_REQUEUE)
    tell("learning", ok=ok, exit=process.returncode, knn_top1=probes, **figures_of(read_log(folder)))
    pack(folder)


def figures_of(log: list[dict[str, float]]) -> dict[str, object]:
    """From the run's beginning to its end, in five places."""
    if not log:
        return {}
    lines = [log[i * (len(log) - 1) // 4] for i in range(5)]
    rates = sorted(line["images_per_second"] for line in log)
    return {
        "steps": log[-1]["step"] + 1,
        "loss": [round(line["loss"], 4) for line in lines],
        "std": [round(line["prediction_std"], 3) for line in lines],
        "images_s": round(rates[len(rates) // 2], 1),
    }


def pack(folder: Path) -> None:
    """The run without its weights, as learn.tgz."""
    heavy = {CHECKPOINTS_FOLDER, BACKBONE_NAME}
    with tarfile.open(OUT / "learn.tgz", "w:gz") as archive:
        archive.add(folder, NAME, filter=lambda member: None if heavy & set(Path(member.name).parts) else member)


if __name__ == "__main__":
    main()
