"""What a run tells while it runs: log.jsonl, TensorBoard, Weights & Biases. Telling never ends a run."""

from __future__ import annotations

import json
import os
import platform
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from pipeline.artifacts.json_lines import keep_lines, read_lines
from pipeline.artifacts.run_files import EVENTS_FOLDER, LOG_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import append_whole
from pipeline.foundation.progress import say
from train.config.pretrain import PretrainSettings

FINISH_TIMEOUT = 300.0  # seconds that W&B may take at the end; a network that is gone holds no exit
GROUPS = {  # of figures, as TensorBoard and W&B show them; what is not named here is under `train/`
    "collapse": ("prediction_std", "projection_std"),
    "masks": ("valid_fraction", "masks_per_image", "clusters_in_use"),
    "speed": ("images_per_second", "images_per_second_per_device", "data_wait", "overhead", "memory_gb", "eta_seconds"),
    "probe": ("knn_top1", "linear_miou", "abo", "abo_slic"),
}
TAGS = {name: f"{group}/{name}" for group, names in GROUPS.items() for name in names}


class Telling:
    """Lets nothing that goes wrong with telling through; counts it by what it was about, in `lost`."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Go on after any error of the block; the first, the tenth, the hundredth … of a kind is said."""
        try:
            yield
        except Exception as error:  # a full disk, a lost connection, a bug of a logger: none is worth a run
            self.lost[what] += 1
            if (count := str(self.lost[what])).strip("0") == "1":
                why = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                say(f"pretrain: WARNING: {what} could not be written ({why}); going on, {count} lost so far")


class Sink(Protocol):
    """Somewhere that records and pictures go; may raise anything."""

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Tell a record."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a PNG."""

    def close(self) -> None:
        """End."""


class RunLog(Telling):
    """Records of steps and of probes, to every place that the settings ask for.

    Args:
        first_step: of a resumed run; what was told of later ones is taken back.
        run_id: the same for every start of a run, different for any other.
    """

    def __init__(self, run: Path, settings: PretrainSettings, *, first_step: int, run_id: str) -> None:
        super().__init__()
        self._sinks: dict[str, Sink] = {}
        with self.attempt(LOG_NAME):
            self._sinks[LOG_NAME] = JsonLines(run, first_step=first_step)
        with self.attempt("TensorBoard's events"):
            self._sinks["TensorBoard's events"] = Events(run / EVENTS_FOLDER, first_step=first_step)
        if settings.run.wandb_project is not None:
            with self.attempt("the W&B record"):
                self._sinks["the W&B record"] = WeightsAndBiases(run, settings, run_id=run_id)

    def write(self, *, step: int, **figures: float) -> None:
        """One record, in ascending order of steps."""
        for name, sink in self._sinks.items():
            with self.attempt(name):
                sink.write(step, figures)

    def picture(self, *, step: int, name: str, path: Path) -> None:
        """A PNG that lies in the run folder."""
        for what, sink in self._sinks.items():
            with self.attempt(what):
                sink.picture(step, name, path)

    def close(self) -> None:
        """Nothing is told after this, but how much was not."""
        for name, sink in self._sinks.items():
            with self.attempt(name):
                sink.close()
        if self.lost:
            say(f"pretrain: not told: {', '.join(f'{what} {count} times' for what, count in self.lost.items())}")


class JsonLines:
    """`log.jsonl`, one record a line, on disk when `write` returns; a line is whole or not there."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        self._path = run / LOG_NAME
        keep_lines(self._path, fits=_is_record, wanted=lambda record: record["step"] < first_step)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Append one record."""
        append_whole(self._path, (json.dumps({"step": step, **figures}) + "\n").encode())

    def picture(self, step: int, name: str, path: Path) -> None:
        """Pictures lie beside the log."""

    def close(self) -> None:
        """Every record is on disk."""


def _is_record(line: dict[str, Any]) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in line.values())
    return numbers and isinstance(step := line.get("step"), int) and step >= 0


def read_log(run: Path, *, figure: str = "loss") -> list[dict[str, float]]:
    """The whole records of a run's log that have a figure: those of steps have `loss`, those of probes their own."""
    return [record for record in read_lines(run / LOG_NAME, fits=_is_record) if figure in record]


class Events:
    """TensorBoard's events, by tensorboardX's messages.

    Its own writer is a thread with a queue, which a full disk ends and the exit then waits for.
    """

    def __init__(self, folder: Path, *, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{platform.node()}.{os.getpid()}"
        self._put(file_version="brain.Event:2")
        if first_step:  # TensorBoard then shows none of the later ones that it finds
            self._put(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One scalar a figure."""
        values = [Summary.Value(tag=tag_of(name), simple_value=value) for name, value in figures.items()]
        self._put(step=step, summary=Summary(value=values))

    def picture(self, step: int, name: str, path: Path) -> None:
        """The PNG's own bytes."""
        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._put(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

    def _put(self, **members: Any) -> None:
        """Append one event as a TFRecord: length, its checksum, data, its checksum."""
        data = Event(wall_time=time.time(), **members).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        append_whole(self._path, length + checksums[0] + data + checksums[1])

    def close(self) -> None:
        """Every event is on disk."""


class WeightsAndBiases:
    """A run of Weights & Biases, the same one after a resume (extra `wandb`)."""

    def __init__(self, run: Path, settings: PretrainSettings, *, run_id: str) -> None:
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=settings.run.wandb_project,
            id=run_id,
            name=run.name,
            dir=str(run),
            resume="allow",
            config=settings.model_dump(mode="json"),
            settings=wandb.Settings(console="off", finish_timeout=FINISH_TIMEOUT),
        )

    def write(self, step: int, figures: dict[str, float]) -> None:
        """One record."""
        self._run.log({tag_of(name): value for name, value in figures.items()}, step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        """One image."""
        self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self) -> None:
        """Wait for what is still to be sent."""
        self._run.finish()


def tag_of(name: str) -> str:
    """A figure's name with its group, as in `collapse/prediction_std`."""
    return TAGS.get(name, f"{'time' if name.startswith(('seconds_', 'saves')) else 'train'}/{name}")


def require_loggers(settings: PretrainSettings) -> None:
    """Raises InputError where a logger that the settings ask for is not installed."""
    if settings.run.wandb_project is not None and find_spec("wandb") is None:
        raise InputError("pretrain.run.wandb_project needs Weights & Biases: pip install -e '.[wandb]'")
