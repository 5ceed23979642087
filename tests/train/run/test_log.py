"""The log in all its forms says the same, is repaired after a resume and a full disk, and never ends a run."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artifacts.run_files import EVENTS_FOLDER, LOG_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.progress import Progress, say
from train.config.pretrain import PretrainSettings
from train.run.log import RunLog, Telling, read_log, require_loggers

SETTINGS = PretrainSettings()
ROOT = Path(__file__).parents[3]


def log_of(run: Path, *steps: int, first_step: int = 0, settings: PretrainSettings = SETTINGS) -> RunLog:
    log = RunLog(run, settings, first_step=first_step, run_id="id")
    for step in steps:
        log.write(step=step, loss=4.0 / (step + 1), num_clusters=128, prediction_std=0.25, images_per_second=1.5)
    log.close()
    return log


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def scalars_of(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / EVENTS_FOLDER), purge_orphaned_data=True)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_and_jsonl_say_the_same(tmp_path: Path) -> None:
    log_of(tmp_path, 0, 10, 20)
    records = read_log(tmp_path)
    assert [r["step"] for r in records] == [0, 10, 20]
    scalars = scalars_of(tmp_path)
    tags = {
        "train/loss": "loss", "train/num_clusters": "num_clusters", "collapse/prediction_std": "prediction_std",
        "speed/images_per_second": "images_per_second",
    }  # fmt: skip
    assert set(scalars) == set(tags)
    for tag, name in tags.items():
        assert [step for step, _ in scalars[tag]] == [r["step"] for r in records]
        assert [value for _, value in scalars[tag]] == pytest.approx([r[name] for r in records])


def test_a_resume_takes_back_what_it_will_do_again(tmp_path: Path) -> None:
    log_of(tmp_path, 0, 10, 20, 30)
    with (tmp_path / LOG_NAME).open("a") as file:
        file.write('{"step": 40, "lo')  # a kill
    log_of(tmp_path, 20, 30, first_step=20)
    assert [r["step"] for r in read_log(tmp_path)] == [0, 10, 20, 30]
    assert [step for step, _ in scalars_of(tmp_path)["train/loss"]] == [0, 10, 20, 30]


@pytest.mark.parametrize(
    "damaged", [b'{"step": 10, "lo\n', b"{}\n", b"7\n", b'{"step": 10, "loss": "low"}\n', b"\xff\n"]
)
def test_a_damaged_line_costs_no_other(tmp_path: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    log_of(tmp_path, 0, 10, 20, 30)
    path = tmp_path / LOG_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], damaged, *lines[2:]]))
    assert [r["step"] for r in read_log(tmp_path)] == [0, 20, 30]
    log = log_of(tmp_path, 30, 40, first_step=30)
    assert capsys.readouterr().err == f"r2o: WARNING: {path}: 1 damaged line dropped\n"
    assert log.lost == {}
    assert [json.loads(line)["step"] for line in path.read_bytes().splitlines()] == [0, 20, 30, 40]


def test_probes_and_steps_are_told_apart(tmp_path: Path) -> None:
    log = RunLog(tmp_path, SETTINGS, first_step=0, run_id="id")
    log.write(step=9, loss=1.0)
    log.write(step=9, knn_top1=0.5)
    assert read_log(tmp_path) == [{"step": 9, "loss": 1.0}]
    assert read_log(tmp_path, figure="knn_top1") == [{"step": 9, "knn_top1": 0.5}]
    assert scalars_of(tmp_path)["probe/knn_top1"] == [(9, 0.5)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_shown(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (7, 5), "red").save(tmp_path / "a.png")
    RunLog(tmp_path, SETTINGS, first_step=0, run_id="id").picture(step=3, name="refined_masks", path=tmp_path / "a.png")
    events = EventAccumulator(str(tmp_path / EVENTS_FOLDER))
    events.Reload()
    (image,) = events.Images("refined_masks")
    assert (image.step, image.width, image.height) == (3, 7, 5)
    assert image.encoded_image_string == (tmp_path / "a.png").read_bytes()


LIMITED = """
import resource, signal, sys
from pathlib import Path
from train.config.pretrain import PretrainSettings
from train.run.log import RunLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = RunLog(Path(sys.argv[1]), PretrainSettings(), first_step=0, run_id="id")
for step in range(60):
    limit = 700 if 20 <= step < 40 else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    log.write(step=step, loss=step / 2)
log.close()
print(dict(log.lost))
"""


def limited(run: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(run)], cwd=ROOT, capture_output=True, text=True, check=True
    )


@pytest.mark.processes
def test_a_disk_that_is_full_for_a_while_costs_those_records_alone(tmp_path: Path) -> None:
    done = limited(tmp_path)
    steps = [record["step"] for record in read_log(tmp_path)]
    whole = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert [record["step"] for record in whole] == steps
    assert set(steps) >= {*range(20), *range(40, 60)}
    lost = ast.literal_eval(done.stdout)
    assert lost[LOG_NAME] == 60 - len(steps) >= 10
    assert [s for s, _ in scalars_of(tmp_path)["train/loss"]] >= [*range(20)]
    assert {*range(40, 60)} <= {s for s, _ in scalars_of(tmp_path)["train/loss"]}
    assert f"WARNING: {LOG_NAME} could not be written (OSError" in done.stderr
    assert done.stderr.count(LOG_NAME) == 3  # at the first, at the tenth, and all of them at the end


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.processes
@pytest.mark.system
def test_a_full_file_system_leaves_whole_lines(tiny_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_of(tiny_disk, *range(500))
    assert 0 < len(read_log(tiny_disk)) == 500 - log.lost[LOG_NAME] < 500
    assert (tiny_disk / LOG_NAME).read_bytes().endswith(b"}\n")
    assert "No space left on device" in capsys.readouterr().err
    again = log_of(tiny_disk, 3, first_step=3)  # cutting the log makes room
    assert [r["step"] for r in read_log(tiny_disk)][:3] == [0, 1, 2]
    assert again.lost[LOG_NAME] == 0


def test_whatever_goes_wrong_is_counted_and_said_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    telling = Telling()
    for _ in range(150):
        with telling.attempt("a panel"):
            raise KeyError("no such\nthing")
    assert telling.lost == {"a panel": 150}
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition(", ")[2] for line in lines] == ["1 lost so far", "10 lost so far", "100 lost so far"]
    with pytest.raises(KeyboardInterrupt), telling.attempt("a panel"):
        raise KeyboardInterrupt


class Deaf:
    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError


def test_progress_that_nobody_hears_is_no_error() -> None:
    progress = Progress("x", 2, "steps", interval=0, out=Deaf())  # type: ignore[arg-type]
    progress.advance(1)
    progress.advance(1)
    say("x", out=Deaf())  # type: ignore[arg-type]
    assert progress.done == 2


def with_wandb() -> PretrainSettings:
    return PretrainSettings.model_validate({"run": {"wandb_project": "r2o"}})


def test_weights_and_biases_missing_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.run.log.find_spec", lambda name: None)
    require_loggers(SETTINGS)
    with pytest.raises(InputError, match=r"pip install -e '\.\[wandb\]'"):
        require_loggers(with_wandb())


OFFLINE = """
import sys
from pathlib import Path
from train.config.pretrain import PretrainSettings
from train.run.log import RunLog
settings = PretrainSettings.model_validate({"run": {"wandb_project": "r2o"}})
log = RunLog(Path(sys.argv[1]), settings, first_step=0, run_id="abc-run")
for step in (0, 10):
    log.write(step=step, loss=4.5 - step / 10, prediction_std=0.25)
log.close()
print(dict(log.lost))
"""


@pytest.mark.processes
def test_weights_and_biases_gets_the_same_records(tmp_path: Path) -> None:
    """Offline, with its real package."""
    environment: dict[str, Any] = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip().splitlines()[-1]) == (0, "{}"), done.stderr
    (record,) = (tmp_path / "wandb").glob("offline-run-*-abc-run/run-abc-run.wandb")
    content = record.read_bytes()
    assert b"collapse/prediction_std" in content
    assert b"train/loss" in content
    assert read_log(tmp_path)[1] == {"step": 10, "loss": 3.5, "prediction_std": 0.25}
