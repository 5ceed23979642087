"""The command: results, what is skipped, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.errors import exit_code_of
from pipeline.foundation.pictures import voc_palette
from train.evals import voc as command
from train.evals.segmentation.metrics import class_iou, summary_of, table_of
from train.evals.segmentation.voc_folder import VOC_CLASSES, VocFolder

OPTIONS = [
    "iterations=2",
    "batch_size=2",
    "crop_size=32",
    "head_channels=8",
    "auxiliary_channels=8",
    "num_workers=0",
    "inits=[run,random]",
    "seeds=[0,5]",
    "report_classes=[red,blue]",
]


def call(run: Path, voc: Path, *options: str) -> int:
    settings = [f"--set=eval_voc.{option}" for option in (*OPTIONS, *options)]
    return exit_code_of(lambda: command.main([f"--run={run}", f"--voc={voc}", *settings]))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_results_repeat_and_what_is_finished_is_skipped(
    run_folder: Path, voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run_folder, voc.parent) == 0
    out = run_folder / "eval-voc"
    first = contents(out)
    pairs = [f"{init}-seed{seed}" for init in ("random", "run") for seed in (0, 5)]
    assert sorted(first) == sorted(
        [*(f"{p}.json" for p in pairs), *(f"{p}.png" for p in pairs), "predictions.png", "results.json"]
    )
    results = json.loads(first["results.json"])
    assert (results["train_images"], results["val_images"]) == (12, 6)
    for init in ("run", "random"):
        summary = results["inits"][init]
        means = []
        for seed in (0, 5):
            confusion = np.array(json.loads(first[f"{init}-seed{seed}.json"])["confusion"])
            iou = class_iou(confusion)
            means.append(np.nanmean(iou))
            assert summary["seeds"][str(seed)]["mean_iou"] == pytest.approx(means[-1])
            assert summary["seeds"][str(seed)]["report_mean_iou"] == pytest.approx(np.nanmean(iou[1:]))
        assert summary["mean_iou"]["mean"] == pytest.approx(np.mean(means))
        assert summary["mean_iou"]["std"] == pytest.approx(np.std(means, ddof=1))
    assert "mean of 2 report_classes" in capsys.readouterr().out

    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*-seed*")}
    (out / "run-seed5.json").unlink()
    assert call(run_folder, voc) == 0
    assert contents(out) == first  # made again, to the bit
    assert {p for p, t in stamps.items() if p.stat().st_mtime_ns != t} == {
        out / "run-seed5.json",
        out / "run-seed5.png",
    }
    assert capsys.readouterr().err.count("finished before and unchanged") == 3


def test_other_settings_or_data_are_not_taken_for_finished(run_folder: Path, voc: Path) -> None:
    single = ("inits=[run]", "seeds=[0]")
    assert call(run_folder, voc, *single) == 0
    path = run_folder / "eval-voc" / "run-seed0.json"
    before = json.loads(path.read_bytes())["fingerprint"]
    assert call(run_folder, voc, *single, "cache_mib=0", "log_every_iterations=1", "report_classes=[red]") == 0
    assert json.loads(path.read_bytes())["fingerprint"] == before
    assert call(run_folder, voc, *single, "lr=0.02") == 0
    other = json.loads(path.read_bytes())["fingerprint"]
    mask = voc / "SegmentationClass" / "000.png"
    Image.fromarray(np.zeros_like(np.asarray(Image.open(mask)))).save(mask)
    assert call(run_folder, voc, *single, "lr=0.02") == 0
    assert len({before, other, json.loads(path.read_bytes())["fingerprint"]}) == 3


def test_an_interrupted_evaluation_leaves_no_results(
    run_folder: Path, voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = ("inits=[run]", "seeds=[0]")
    assert call(run_folder, voc, *single) == 0

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "fine_tune", stop)
    assert call(run_folder, voc, *single, "lr=0.5") == 130
    assert not (run_folder / "eval-voc" / "results.json").exists()


@pytest.mark.parametrize("version", [1, 2])
def test_a_changed_confusion_matrix_is_not_believed(
    run_folder: Path, voc: Path, version: int, capsys: pytest.CaptureFixture[str]
) -> None:
    single = ("inits=[run]", "seeds=[0]")
    assert call(run_folder, voc, *single) == 0
    first, path = contents(run_folder / "eval-voc"), run_folder / "eval-voc" / "run-seed0.json"
    record = {**json.loads(first[path.name]), "format_version": version}
    if version == 1:
        del record["checksum"]
        path.write_text(json.dumps(record))
        assert call(run_folder, voc, *single) == 0
        assert "finished before and unchanged" in capsys.readouterr().err
    record["confusion"][1][1] += 1000
    path.write_text(json.dumps(record))
    assert call(run_folder, voc, *single) == 0
    assert "run-seed0.json was changed after it was written; scored again" in capsys.readouterr().err
    assert contents(run_folder / "eval-voc") == first


def test_changed_results_are_written_anew_and_no_link_is_followed(
    run_folder: Path, voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single, out = ("inits=[run]", "seeds=[0]"), run_folder / "eval-voc"
    assert call(run_folder, voc, *single) == 0
    first = contents(out)
    (out / "results.json").write_bytes(first["results.json"].replace(b'"n": 1', b'"n": 9'))
    assert call(run_folder, voc, *single) == 0
    assert contents(out) == first
    out.rename(tmp_path / "elsewhere")
    out.symlink_to(tmp_path / "elsewhere")
    capsys.readouterr()
    assert call(run_folder, voc, *single, "lr=0.5") == 2
    assert "eval-voc: a link, and r2o follows none there" in capsys.readouterr().err
    assert contents(tmp_path / "elsewhere") == first


def test_a_folder_where_a_file_is_to_be_is_one_line(
    run_folder: Path, voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_folder / "eval-voc" / "run-seed0.json").mkdir(parents=True)
    assert call(run_folder, voc, "inits=[run]", "seeds=[0]") == 2
    err = capsys.readouterr().err
    assert "run-seed0.json: Is a directory" in err
    assert err.count("\n") == 1


def text(path: Path, content: str) -> None:
    path.write_text(content)


CASES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "no run": (lambda run, voc: (run / "backbone.pt").unlink(), "no backbone.pt"),
    "not weights": (lambda run, voc: text(run / "backbone.pt", "x"), "backbone.pt is damaged"),
    "not VOC": (lambda run, voc: (voc / "JPEGImages").rename(voc / "other"), "no JPEGImages in it"),
    "no list": (lambda run, voc: (voc / "ImageSets/Segmentation/val.txt").unlink(), "val.txt cannot be read"),
    "empty list": (lambda run, voc: text(voc / "ImageSets/Segmentation/train.txt", "\n"), "train.txt is empty"),
    "twice": (lambda run, voc: text(voc / "ImageSets/Segmentation/train.txt", "000\n000\n"), "lists 000 twice"),
    "absent image": (lambda run, voc: (voc / "JPEGImages/003.jpg").unlink(), "003.jpg is listed"),
    "absent mask": (lambda run, voc: (voc / "SegmentationClass/014.png").unlink(), "014.png is listed"),
    "damaged image": (lambda run, voc: text(voc / "JPEGImages/003.jpg", "x"), "003.jpg is not a whole JPEG"),
    "damaged mask": (lambda run, voc: text(voc / "SegmentationClass/003.png", "x"), "003.png is not a whole PNG"),
    "sizes": (
        lambda run, voc: Image.new("L", (5, 4)).save(voc / "SegmentationClass/002.png"),
        "002.png is 5×4, but 002.jpg is",
    ),
    "colour mask": (
        lambda run, voc: Image.new("RGB", (5, 4)).save(voc / "SegmentationClass/002.png"),
        "002.png: a mask is an 8-bit",
    ),
    "class id": (lambda run, voc: text(voc / "classes.txt", "red\nblue\n"), "holds class id 2"),
    "classes": (lambda run, voc: text(voc / "classes.txt", "a\na\n"), "classes.txt must hold 2 to 255"),
    "report class": (lambda run, voc: text(voc / "classes.txt", "background\ngreen\nblue\n"), "no class 'red'"),
    "out": (lambda run, voc: text(run / "eval-voc", ""), "eval-voc cannot be made"),
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_one_line(run_folder: Path, voc: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, message = CASES[case]
    spoil(run_folder, voc)
    assert call(run_folder, voc) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("r2o: error: ")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("itertions=3", "did you mean 'iterations'"),
        ("scale_range=[2, 0.5]", "scale_range"),
        ("seeds=[1, 1]", "holds a value twice"),
        ("seeds=[-1]", "eval_voc.seeds"),
        ("train_list=nothing", "nothing.txt cannot be read"),
        ("train_masks=SegmentationClassAug", "SegmentationClassAug/000.png is listed"),
    ],
)
def test_bad_settings_are_one_line(
    run_folder: Path, voc: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run_folder, voc, option) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.processes
def test_as_a_process_there_is_no_traceback(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "train.evals.voc", f"--run={tmp_path / 'none'}", f"--voc={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "no such run folder" in process.stderr


def test_folder_is_found_from_every_level_and_has_vocs_classes(voc: Path) -> None:
    (voc / "classes.txt").unlink()
    folders = [VocFolder.open(path) for path in (voc, voc.parent, voc.parent.parent)]
    assert {f.root for f in folders} == {voc}
    assert folders[0].classes == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[15], VOC_CLASSES[20]) == (
        21,
        "background",
        "person",
        "tvmonitor",
    )


def test_the_cache_is_bounded_and_changes_nothing(voc: Path) -> None:
    folder = VocFolder.open(voc)
    plain, cached = folder.split("train"), folder.split("train", cache_mib=1)
    assert plain.digest == cached.digest
    for one, other in zip((plain[i] for i in range(12)), (cached[i] for i in range(12)), strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_palette_is_vocs() -> None:
    published = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 12: (64, 0, 128), 15: (192, 128, 128), 20: (0, 64, 128)}
    for index, colour in {**published, 255: (224, 224, 192)}.items():
        assert tuple(voc_palette()[index].tolist()) == colour


def test_summary_and_table_by_hand() -> None:
    def score(mean: float, cat: float | None) -> dict[str, object]:
        return {"mean_iou": mean, "report_mean_iou": None, "pixel_accuracy": 0.5, "iou": {"bg": mean, "cat": cat}}

    summary = summary_of({0: score(0.2, None), 3: score(0.4, 0.5)})
    assert summary["mean_iou"] == pytest.approx({"mean": 0.3, "std": 0.1 * 2**0.5, "n": 2})
    assert summary["iou"]["cat"] == {"mean": 0.5, "std": None, "n": 1}
    table = table_of({"run": summary}, classes=["bg", "cat"], report_classes=[])
    assert "30.00 ± 14.14" in table
    assert "mean of the 2 classes that occur" in table
