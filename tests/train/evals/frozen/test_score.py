"""The commands: what they write and print, what they refuse before anything runs, how they end when asked to."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.scores import read_scores
from pipeline.artifacts.seal import unsealed
from pipeline.foundation.errors import exit_code_of
from train.evals.frozen import features, score

SMALL = [
    "overclustering.size=64", "overclustering.seeds=[0]", "overclustering.clusters=4", "overclustering.pca=8",
    "abo.size=64", "abo.seeds=[0]", "abo.group_size=4", "features.batch_size=4", "baselines=[random]",
]  # fmt: skip

pytestmark = pytest.mark.long


def options(out: Path, *more: str) -> list[str]:
    return [f"--out={out}", "--protocols=overclustering,abo", *more, *(f"--set=eval_frozen.{one}" for one in SMALL)]


def call(run: Path, voc: Path, out: Path, *more: str) -> int:
    return exit_code_of(lambda: score.main([f"--weights={run}", f"--data={voc}", *options(out, *more)]))


def test_a_lack_of_memory_is_one_line_and_what_is_done_stays(
    run_folder: Path, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def large(task: object) -> None:
        np.empty(2**60, dtype=np.uint8)

    monkeypatch.setitem(score.SCORE_FUNCTIONS, "abo", large)
    assert call(run_folder, voc, tmp_path, "--set=eval_frozen.baselines=[]") == 2
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == (
        "r2o: error: eval-frozen: out of host memory; lower eval_frozen.data.max_images or the protocol's size "
        "(eval_frozen.<protocol>.size), or run one protocol at a time (--protocols); what is finished is not done again"
    )
    assert "Traceback" not in errors
    assert [path.parts[-3] for path in tmp_path.rglob("results.json")] == ["overclustering"]


def test_a_run_beside_its_baseline_on_voc(
    run_folder: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(run_folder, voc, out) == 0
    printed = capsys.readouterr()
    table = printed.out.splitlines()
    assert table[0].split() == ["run", "random"]
    assert table[1].startswith("VOC2012 overclustering (mean_iou, %)")
    assert "100 % of the backbone loaded" in printed.err
    assert "data VOC2012: voc, 3 classes, 6 images of val" in printed.err
    assert "runs: overclustering, abo" in printed.err
    assert "features: up to " in printed.err
    folders = [out / "VOC2012" / label / p / "seed0" for label in ("run", "random") for p in ("overclustering", "abo")]
    for folder, column in zip(folders, (1, 1, 2, 2), strict=True):
        scores = read_scores(folder)
        assert scores is not None
        row = table[1 if "overclustering" in str(folder) else 2].split()
        assert row[-3 + column] == f"{100 * scores.scores[scores.protocol.headline]:.1f}"
        assert (folder / "predictions.png").is_file()
    summary = unsealed(json.loads((out / "summary.json").read_text()), required=True)
    assert [row["protocol"] for row in summary["rows"]] == ["overclustering", "abo"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    assert call(run_folder, voc, out, "--drop-features", "--set=eval_frozen.protocols=[linear]") == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("results.json")} == before
    assert "4 of 4 results are finished and unchanged" in capsys.readouterr().err
    chosen = [one for one in options(out, "--set=eval_frozen.protocols=[abo]") if "--protocols" not in one]
    assert exit_code_of(lambda: score.main([f"--weights={run_folder}", f"--data={voc}", *chosen])) == 0
    said = capsys.readouterr().err
    assert "runs: abo\n" in said
    assert "2 of 2 results are finished and unchanged" in said


def test_what_is_wrong_is_said_in_one_line_before_anything_runs(
    run_folder: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def refused(*more: str, weights: Path = run_folder, data: Path = voc) -> str:
        assert exit_code_of(lambda: score.main([f"--weights={weights}", f"--data={data}", f"--out={out}", *more])) == 2
        assert not out.exists()
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "no protocol 'lineal'" in refused("--protocols=lineal")
    wrong = refused("--set=eval_frozen.protocols=[knn, lineal]")
    assert "eval_frozen.protocols.1: no protocol 'lineal'; there are linear, knn, " in wrong
    assert "no such folder" in refused(data=tmp_path / "nowhere")
    assert "gone.pth" in refused(weights=tmp_path / "gone.pth")
    assert "unknown key 'eval_frozen.lineal'" in refused("--set=eval_frozen.lineal.k=3")
    assert "no class 'green'" in refused("--set=eval_frozen.report_classes=[green]")
    (voc / "SegmentationClass" / "012.png").write_bytes(b"no PNG")
    assert "012.png" in refused()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_in_one_line_and_the_same_command_goes_on(
    voc: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    more = ["--set=eval_frozen.overclustering.iterations=100000", "--set=eval_frozen.overclustering.seeds=[0,1,2,3]"]
    command = [sys.executable, "-m", "train.evals.frozen.score", "--weights=random", "--backbone=resnet18"]
    arguments = [f"--data={voc}", *options(out), *more]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        while not list(out.rglob("c5.npy")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "run the same command again to go on" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors


def test_features_of_any_images(tmp_path: Path, shallow: None, capsys: pytest.CaptureFixture[str]) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    for name, mode, size in (("b/x.png", "L", (500, 1)), ("a.jpg", "RGB", (60, 40)), ("b/ü y.webp", "RGB", (33, 64))):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name))
        shape = (size[1], size[0], 3)[: 2 if mode == "L" else 3]
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(images / name)
    (images / "notes.txt").write_text("no image")
    given = ["--weights=random", "--backbone=resnet18", f"--data={images}", f"--out={out}", "--size=64"]
    assert exit_code_of(lambda: features.main(given)) == 0
    assert json.loads((out / "keys.json").read_text()) == ["a.jpg", "b/x.png", "b/ü y.webp"]
    shapes = {name: np.load(out / f"{name}.npy").shape for name in ("c4", "c5", "pooled")}
    assert shapes == {"c4": (3, 4, 4, 256), "c5": (3, 2, 2, 512), "pooled": (3, 512)}
    pooled = np.load(out / "pooled.npy")
    np.testing.assert_allclose(np.load(out / "c5.npy").astype(np.float32).mean((1, 2)), pooled, rtol=2e-3, atol=1e-3)
    assert exit_code_of(lambda: features.main(given)) == 0
    capsys.readouterr()
    assert exit_code_of(lambda: features.main([*given, "--size=96"])) == 2
    assert "holds features of other images, weights or settings" in capsys.readouterr().err
    assert exit_code_of(lambda: features.main([*given[:3], f"--out={images}"])) == 2
    assert "which is not of features" in capsys.readouterr().err
    assert exit_code_of(lambda: features.main([*given, "--levels=c6"])) == 2


def test_features_of_one_list_of_a_data_set(voc: Path, tmp_path: Path, shallow: None) -> None:
    given = ["--weights=random", "--backbone=resnet18", f"--data={voc}", "--size=64", "--levels=pooled"]
    assert exit_code_of(lambda: features.main([*given, f"--out={tmp_path / 'val'}", "--list=val"])) == 0
    assert json.loads((tmp_path / "val" / "keys.json").read_text()) == [f"{i:03d}" for i in range(12, 18)]
    assert not (tmp_path / "val" / "c5.npy").exists()
