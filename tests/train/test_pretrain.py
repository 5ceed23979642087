"""A whole run: what it leaves, that it learns, and that a killed run goes on as if it had never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import sha256_of
from train import pretrain
from train.engine.checkpoint import checkpoints, read_checkpoint
from train.export import export
from train.models.backbone_file import read_backbone
from train.models.weights.load import load_backbone
from train.run.log import read_log

pytestmark = pytest.mark.processes

SMALL = {
    "pretrain": {
        "epochs": 4,
        "global_batch_size": 16,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 1},
        "augment": {"blur_kernel_size": 5},
        "model": {"backbone": "resnet18", "head_hidden_size": 64, "projection_size": 16},
        "refine": {"clustering_group_size": 8},
        "curriculum": {"initial_num_clusters": 12, "hold_epochs": 1},
        "optim": {"base_lr": 8.0, "warmup_epochs": 0.5},
        "run": {"log_every_steps": 1, "panels_every_epochs": 2, "panel_images": 3},
    }
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def command(shards: Path, run: Path, config: Path, *options: str) -> list[str]:
    fixed = [f"--shards={shards}", f"--run={run}", f"--config={config}"]
    return [sys.executable, "-m", "train.pretrain", *fixed, *options]


def start(*arguments: Path | str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command(*arguments), env=environment, stderr=subprocess.PIPE, text=True)


def finish(*arguments: Path | str) -> str:
    process = start(*arguments)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return errors


@pytest.fixture(scope="module")
def undisturbed(shards: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    finish(shards, run, config)
    return run


def test_the_run_folder_explains_itself(undisturbed: Path) -> None:
    assert sorted(p.name for p in undisturbed.iterdir()) == [
        ".lock", "backbone.pt", "checkpoints", "config.yaml", "log.jsonl", "panels", "run.json",
        "tensorboard",
    ]  # fmt: skip
    record = json.loads((undisturbed / "run.json").read_text())
    assert record["samples"] == 70
    assert record["versions"]["torch"] == torch.__version__
    assert yaml.safe_load((undisturbed / "config.yaml").read_text())["pretrain"]["optim"]["momentum"] == 0.9
    assert [p.name for p in checkpoints(undisturbed)] == ["step-00000012.pt", "step-00000016.pt"]
    own = read_backbone(undisturbed / "backbone.pt")
    newest = {part: load_backbone(checkpoints(undisturbed)[-1], part=part) for part in ("online", "target")}
    assert {(one.name, one.format, one.loaded) for one in newest.values()} == {("resnet18", "r2o_checkpoint", 1.0)}
    assert {one.fingerprint for one in newest.values()} == {own.fingerprint} == {record["fingerprint"]}
    assert all(torch.equal(value, newest["online"].weights[key]) for key, value in own.state_dict.items())
    assert not torch.equal(newest["target"].weights["conv1.weight"], own.state_dict["conv1.weight"])


def test_the_log_tells_every_step_by_its_schedule(undisturbed: Path) -> None:
    log = read_log(undisturbed)
    assert [line["step"] for line in log] == list(range(16))
    # K(e) = 4 + cos(π/2·(e-1)/3)·8 from epoch 1 on
    assert [log[4 * e]["num_clusters"] for e in range(4)] == [12, 12, 10, 8]
    assert log[0]["lr"] == 0
    assert log[2]["lr"] == pytest.approx(8.0 * 16 / 256)  # the end of two steps of warm-up
    assert all(0 <= line["loss"] <= 8 and 0 < line["valid_fraction"] <= 1 for line in log)


def test_it_learns(undisturbed: Path) -> None:
    losses = [line["loss"] for line in read_log(undisturbed)]
    assert np.mean(losses[-4:]) < 0.8 * losses[0]


def test_panels_are_pictures_of_the_stated_size(undisturbed: Path) -> None:
    panels = sorted(p.name for p in (undisturbed / "panels").iterdir())
    steps = [f"step-{step:08d}.{kind}" for step in (0, 8, 16) for kind in ("npz", "png")]
    assert panels == ["curves.png", "over_training.png", "over_training.webp", *steps]
    with Image.open(undisturbed / "panels" / "over_training.png") as picture:
        assert picture.width == (2 + 3) * 166 + 6
        assert picture.height == 16 + 3 * 166 + 6
        assert len(picture.getcolors(1 << 24)) > 1000
    with Image.open(undisturbed / "panels" / "step-00000000.png") as picture:
        assert picture.size == (4 * 166 + 6, 16 + 3 * 166 + 6)
    with Image.open(undisturbed / "panels" / "over_training.webp") as picture:
        assert picture.n_frames == 3


def test_a_run_killed_inside_an_epoch_ends_with_the_same_bits(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    process = start(shards, run, config, "--set=pretrain.run.checkpoint_every_steps=3")
    while len(checkpoints(run)) < 2 and process.poll() is None:  # step 0, and one inside the first epoch
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = int(checkpoints(run)[-1].stem.split("-")[1])
    for path in checkpoints(run)[:-1]:
        path.unlink()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "backbone.pt").exists()
    assert f"going on after step {done} (epoch {done // 4}, {done % 4} steps in)" in finish(shards, run, config)
    ours, theirs = read_log(run), read_log(undisturbed)
    timing = {"images_per_second", "images_per_second_per_device", "data_wait", "overhead", "memory_gb", "eta_seconds"}
    assert [{k: v for k, v in a.items() if k not in timing} for a in ours] == [
        {k: v for k, v in b.items() if k not in timing} for b in theirs
    ]
    assert (run / "backbone.pt").read_bytes() == (undisturbed / "backbone.pt").read_bytes()


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as error:
        sys.exit(pretrain.exit_code_of(lambda: pretrain.main([str(a) for a in arguments])))
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_mistakes_are_one_line(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    base = ["--run", tmp_path / "run", "--config", config]
    assert "no such folder" in run_main(capsys, "--shards", tmp_path / "none", *base)
    assert "no manifest.json" in run_main(capsys, "--shards", tmp_path, *base)
    other = ["--shards", shards, "--run", undisturbed, "--config", config, "--set", "pretrain.optim.base_lr=2"]
    assert "pretrain.optim.base_lr: 8.0 → 2.0" in run_main(capsys, *other)
    too_large = ["--shards", shards, *base, "--set", "pretrain.global_batch_size=128"]
    assert "hold 70 samples, less than one global batch of 128" in run_main(capsys, *too_large)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "3 processes cannot share a global batch of 16" in run_main(capsys, "--shards", shards, *base)
    assert not (tmp_path / "run").exists()


def test_a_run_begins_with_given_weights_and_is_another_run_for_it(
    undisturbed: Path, shards: Path, config: Path, tmp_path: Path
) -> None:
    weights = export(undisturbed, tmp_path / "init.safetensors", format="detectron2")[0]
    stopped = start(
        shards, tmp_path / "run", config, f"--init={weights}", "--set=pretrain.run.checkpoint_every_steps=1"
    )
    while not read_log(tmp_path / "run") and stopped.poll() is None:
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert f"begins with {weights}, read as detectron2" in stopped.communicate()[1]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["init"] == {"path": str(weights), "sha256": sha256_of(weights)}
    assert record["fingerprint"] != json.loads((undisturbed / "run.json").read_text())["fingerprint"]
    oldest = checkpoints(tmp_path / "run")[0]
    first = read_checkpoint(oldest)["model"]
    trained = read_backbone(undisturbed / "backbone.pt").state_dict
    for name, value in trained.items():  # step 0 has a learning rate of 0, so nothing but statistics has moved
        if oldest.stem <= "step-00000001" and "running" not in name and "num_b" not in name:
            assert torch.equal(first[f"online.backbone.{name}"], value)
            assert torch.equal(first[f"target.backbone.{name}"], value)
    torch.save(read_backbone(undisturbed / "backbone.pt").state_dict, tmp_path / "other.pth")
    for other in ([], [f"--init={tmp_path / 'other.pth'}"]):
        again = start(shards, tmp_path / "run", config, *other)
        assert "holds another run (another --init)" in again.communicate()[1]
        assert again.returncode == 2


@pytest.mark.parametrize(("format", "suffix"), [("torchvision", ".pth"), ("timm", ".safetensors"), ("mmseg", ".pth")])
def test_a_run_is_exported_with_a_card_whose_code_loads_it(
    undisturbed: Path, tmp_path: Path, format: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"backbone{suffix}"
    paths = export(undisturbed, out, format=format, heads=True)
    assert [p.name for p in paths] == [out.name, "backbone.md", "backbone-heads.safetensors"]
    card = paths[1].read_text()
    record = json.loads((undisturbed / "run.json").read_text())
    assert record["fingerprint"] in card
    assert record["shards_fingerprint"] in card
    assert "70 images" in card
    assert "base_lr: 8.0" in card
    assert f"loss {read_log(undisturbed)[-1]['loss']:.4g}" in card
    assert f"knn_top1: {read_log(undisturbed, figure='knn_top1')[-1]['knn_top1']:.4f}" in card
    heads = load_file(paths[2])
    model = read_checkpoint(checkpoints(undisturbed)[-1])["model"]
    assert set(heads) == {key for key in model if not key.startswith("online.backbone.")}
    assert "target.backbone.conv1.weight" in heads
    assert all(torch.equal(value, model[key]) for key, value in heads.items())
    if format == "mmseg":
        assert 'checkpoint="backbone.pth"' in card
        return
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    loaded = names["model"].state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(loaded[k], v) for k, v in read_backbone(undisturbed / "backbone.pt").state_dict.items())


def test_a_checkpoint_of_an_unfinished_run_is_exported(undisturbed: Path, tmp_path: Path) -> None:
    earlier = checkpoints(undisturbed)[0]
    export(undisturbed, tmp_path / "a.pth", format="torchvision", checkpoint=earlier)
    weights, model = torch.load(tmp_path / "a.pth", weights_only=True), read_checkpoint(earlier)["model"]
    assert all(torch.equal(value, model[f"online.backbone.{key}"]) for key, value in weights.items())
    card, log = (tmp_path / "a.md").read_text(), read_log(undisturbed)
    assert "at step 12" in card
    assert f"Last step of the log, 11: loss {log[11]['loss']:.4g}" in card  # of the first 12 steps, not of the last
    with pytest.raises(InputError, match=r"must end in"):
        export(undisturbed, tmp_path / "a.pkl", format="torchvision")
    with pytest.raises(InputError, match=r"no backbone\.pt, so this is no finished run"):
        export(tmp_path, tmp_path / "b.pth", format="torchvision")


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "copied")


def test_a_card_shows_the_scores_of_these_very_weights_only(copied: Path, tmp_path: Path) -> None:
    score = {"mean_iou": {"mean": 0.4321, "std": 0.01, "n": 3}}
    identity = json.loads((copied / "run.json").read_text())["fingerprint"]
    (copied / "eval-voc").mkdir()
    shown = {}
    for of in (identity, "another"):
        results = {
            "format_version": 1,
            "fingerprint": "f",
            "protocol": {},
            "backbone": {"name": "resnet18", "run_fingerprint": of},
            "versions": {},
            "inits": {"run": score},
        }
        (copied / "eval-voc" / "results.json").write_text(json.dumps(results))
        for checkpoint in (None, checkpoints(copied)[0]):
            export(copied, tmp_path / "w.pth", format="timm", checkpoint=checkpoint)
            shown[of, checkpoint is None] = "mIoU 0.4321 ± 0.0100 over 3 seeds" in (tmp_path / "w.md").read_text()
    assert [key for key, value in shown.items() if value] == [(identity, True)]


def test_export_takes_nothing_from_another_run_and_overwrites_nothing_of_its_own(copied: Path, tmp_path: Path) -> None:
    record, newest = json.loads((copied / "run.json").read_text()), checkpoints(copied)[-1]
    for own in (copied / "backbone.pt", newest):
        with pytest.raises(InputError, match="is a run's own; choose another OUT"):
            export(copied, own, format="timm")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        export(copied, tmp_path / "folder.pth", format="timm")
    newest.unlink()  # so that the newest is of another step than backbone.pt
    with pytest.raises(InputError, match=r"step-00000012\.pt has other weights than .*backbone\.pt"):
        export(copied, tmp_path / "w.pth", format="timm", heads=True)
    (copied / "run.json").write_text(json.dumps(sealed({**record, "fingerprint": "0" * 64})))
    for checkpoint, named in ((None, "backbone.pt"), (checkpoints(copied)[0], "step-00000012.pt")):
        with pytest.raises(InputError, match=f"{named} is not of the run that .*run.json records"):
            export(copied, tmp_path / "w.pth", format="timm", checkpoint=checkpoint)
    (copied / "run.json").unlink()
    with pytest.raises(InputError, match="is not of the run that"):
        export(copied, tmp_path / "w.pth", format="timm")
    assert not (tmp_path / "w.pth").exists()
