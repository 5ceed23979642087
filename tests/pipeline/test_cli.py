"""The `r2o` command as the user meets it: mistakes are one line, dry runs are instant."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.artifacts.manifest import MANIFEST_FORMAT_VERSION, Manifest, ShardStats

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]


def r2o(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        cwd=cwd or ROOT, capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], *named: str | Path) -> None:
    """One line on stderr that names the thing, a code that is not 0, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("r2o: error: ")
    for name in named:
        assert str(name) in lines[0]


def manifest(folder: Path, *, samples: int, format_version: int = MANIFEST_FORMAT_VERSION) -> Path:
    """A folder whose manifest claims so many samples in one shard."""
    folder.mkdir()
    stats = ShardStats(name="r2o-000000.tar", samples=samples, bytes=1, sha256="0" * 64, index_sha256="0" * 64)
    whole = Manifest(
        format_version=format_version, settings={}, versions={}, fingerprint="f" * 64, listed=samples, stored=samples,
        quarantined=0, ignored=0, superpixel_size=224, max_superpixels=100, quarantine_sha256="0" * 64, shards=(stats,),
    )  # fmt: skip
    (folder / "manifest.json").write_bytes(whole.encode())
    return folder


def test_help_and_dry_run_need_no_torch_and_no_ray() -> None:
    code = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "main(['pretrain', '--dry-run', '--num-samples=1281167', '--nproc=128'])\n"
        "print([m for m in ('torch', 'ray', 'webdataset', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_dry_run_of_the_papers_recipe() -> None:
    paper = ROOT / "configs" / "imagenet1k_r50_paper.yaml"
    config = [f"--config={paper}"] if paper.exists() else []
    done = r2o("pretrain", *config, "--dry-run", "--num-samples", "1281167", "--nproc", "128")
    assert done.returncode == 0, done.stderr
    rows = {row[0]: row for line in done.stdout.splitlines() if len(row := line.split()) == 5}
    assert [rows[epoch][4] for epoch in ("100", "200", "300")] == ["119", "74", "4"]
    assert "312 an epoch × 300 epochs = 93,600 in all" in done.stdout
    assert "peak 4.8" in done.stdout


def test_dry_run_counts_the_samples_of_shards(tmp_path: Path) -> None:
    shards = manifest(tmp_path / "s", samples=10_000)
    done = r2o("pretrain", "--dry-run", "--shards", shards, "--set", "pretrain.global_batch_size=1024")
    assert done.returncode == 0, done.stderr
    assert "9 an epoch × 300 epochs = 2,700 in all" in done.stdout


def test_dry_run_tells_what_is_left_of_a_run(tmp_path: Path) -> None:
    arguments = ("pretrain", "--dry-run", "--num-samples", "4096", "--run", tmp_path)
    assert "estimated, not measured: at 58 % of their peak, as others train ResNet-50" in r2o(*arguments).stdout
    (tmp_path / "log.jsonl").write_text('{"step": 99, "images_per_second": 409.6}\n{"step": 1')
    assert "33.3 min left after step 100 of 300, at 409.6 images/s as measured" in r2o(*arguments).stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["pretrain", "--dry-run", "--set", "pretrain.optim.base_lrr=3"], "did you mean 'base_lr'?"),
        (["pretrain", "--dry-run", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["pretrain", "--dry-run"], "--num-samples"),
        (["pretrain", "--dry-run", "--num-samples", "100"], "4096"),
        (["pretrain", "--dry-run", "--num-samples", "many"], "'many'"),
        (["pretrain", "--dry-run", "--num-samples", "5000", "--nproc", "3"], "divides 128"),
        (["pretrain"], "--shards and --run"),
        (["pretrain", "--shards", "s", "--run", "r", "--nproc", "-1"], "--nproc"),
        (["pretrain", "--shards", "nowhere", "--run", "r"], "nowhere: no such folder"),
        (["preview", "--shards", "nowhere", "--out", "x.png"], "nowhere: no such folder"),
        (["shards", "--images", "", "--shards", "s"], "empty path"),
        (["shards", "--shards", "s"], "--images"),
        (["export", "--run", "r", "--out", "o.pth", "--format", "keras"], "'keras'"),
        (["export", "--run", "r", "--out", "o.pkl"], "must end in .pth, .pt or .safetensors"),
        (["export", "--run", "r", "--out", "o.pth"], "r: no such run folder"),
        (["eval-voc", "--run", "r"], "--voc"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["nosuchverb"], "nosuchverb"),
        ([], "VERB"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    assert_refused(r2o(*arguments, cwd=tmp_path), named)
    assert list(tmp_path.iterdir()) == []


def test_unknown_key_of_a_file_is_named_with_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("pretrain: {optim: {base_rl: 0.1}}")
    done = r2o("shards", "--images", tmp_path, "--shards", tmp_path / "s", "--config", config)
    assert_refused(done, config, "'pretrain.optim.base_rl'", "did you mean 'base_lr'?")


def test_shards_that_are_none_or_of_another_format_or_damaged(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    other = manifest(tmp_path / "other", samples=5000, format_version=MANIFEST_FORMAT_VERSION + 1)
    damaged = manifest(tmp_path / "damaged", samples=5000)
    (damaged / "manifest.json").write_text(json.dumps({"format_version": MANIFEST_FORMAT_VERSION}))
    text = manifest(tmp_path / "text", samples=5000)
    (text / "manifest.json").write_text("{")
    for folder, said in ((tmp_path / "none", "no manifest.json"), (other, f"reads 1 and {MANIFEST_FORMAT_VERSION}"),
                         (damaged, "damaged"), (text, "cannot be read")):  # fmt: skip
        assert_refused(r2o("pretrain", "--shards", folder, "--run", tmp_path / "r"), folder, said)
        assert_refused(r2o("preview", "--shards", folder, "--out", tmp_path / "x.png"), folder, said)
    assert not (tmp_path / "r").exists()


def test_more_processes_than_the_data_can_feed(tmp_path: Path) -> None:
    shards = manifest(tmp_path / "s", samples=5000)
    done = r2o("pretrain", "--shards", shards, "--run", tmp_path / "r", "--nproc", "256")
    assert_refused(done, "256 processes", "4096", "divides 128")
    few = manifest(tmp_path / "few", samples=4000)
    assert_refused(r2o("pretrain", "--shards", few, "--run", tmp_path / "r"), "4000 samples", "4096")


def test_run_folder_that_is_a_file(tmp_path: Path) -> None:
    shards = manifest(tmp_path / "s", samples=5000)
    (tmp_path / "r").write_text("")
    assert_refused(r2o("pretrain", "--shards", shards, "--run", tmp_path / "r"), tmp_path / "r", "is a file")


def test_images_that_are_missing_empty_or_text(tmp_path: Path) -> None:
    for name in ("empty", "text"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "notes.txt").write_text("no image")
    for name in ("nowhere", "empty", "text"):
        done = r2o("shards", "--images", tmp_path / name, "--shards", tmp_path / "s")
        assert_refused(done, tmp_path / name)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_run_without_a_backbone(tmp_path: Path) -> None:
    voc = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(voc / "JPEGImages" / "a.jpg")
    Image.new("P", (8, 8)).save(voc / "SegmentationClass" / "a.png")
    for name in ("train", "val"):
        (voc / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("a\n")
    (tmp_path / "run").mkdir()
    assert_refused(r2o("eval-voc", "--run", tmp_path / "run", "--voc", voc), tmp_path / "run")
    assert_refused(r2o("eval-voc", "--run", tmp_path / "run", "--voc", tmp_path / "novoc"))


def test_workflow_dry_run_and_status_start_nothing(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("workflow: {nproc: 2}\nscenes: {pretrain_images: 4096}")
    done = r2o("run", "--dry-run", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    names = ["scenes", "shards", "preview", "val-shards", "pretrain", "eval-voc", "eval-frozen"]
    assert [line.split()[0] for line in lines[::2]] == names
    assert {line.index("not started") for line in lines[::2]} == {len("eval-frozen ")}
    assert "--images=runs/my/scenes/VOCdevkit/VOC2012/JPEGImages --shards=runs/my/val-shards" in lines[7]
    assert """'--set=eval_frozen.abo.superpixels="runs/my/val-shards"'""" in lines[13]
    assert all("not started" in line for line in lines[::2])
    assert (
        f"-m pipeline.launchers.ranks 2 train.pretrain --shards=runs/my/shards --run=runs/my/pretrain --config={config}"
        in (lines[9])
    )
    done = r2o("status", config, "--work", tmp_path / "w", "--set", "scenes.seed=3", "pretrain.seed=1")
    assert done.returncode == 0, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [
        str(tmp_path / "w" / place) for place in
        ("scenes", "shards", "superpixels.png", "val-shards", "pretrain", "pretrain/eval-voc", "pretrain/eval-frozen")
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_workflow_names_a_missing_input_and_an_unfit_plan_before_it_starts(tmp_path: Path) -> None:
    config = tmp_path / "my.yaml"
    config.write_text(f"workflow: {{images: {tmp_path / 'nowhere'}, work: {tmp_path / 'w'}}}")
    assert_refused(r2o("run", config), tmp_path / "nowhere", "no such folder")
    scenes = ["--set", "workflow.images=null", "workflow.nproc=3"]
    assert_refused(r2o("run", config, *scenes, "scenes.pretrain_images=5000"), "3 processes", "4096")
    assert_refused(r2o("run", config, *scenes, "scenes.pretrain_images=384"), "384 samples", "4096")
    assert not (tmp_path / "w").exists()


def test_a_preview_refuses_settings_that_it_does_not_need(tmp_path: Path) -> None:
    shards = manifest(tmp_path / "shards", samples=5)
    for wrong, named in (("nonsense=1", "nonsense"), ("shards.nosuch=1", "shards.nosuch")):
        done = r2o("preview", "--shards", shards, "--out", tmp_path / "x.png", "--count", 2, "--set", wrong)
        assert_refused(done, named)
