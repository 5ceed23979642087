"""Every result is made once, from one pass for all protocols that share it, and stands only beside its equals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.artifacts.scores import Scores, read_counts, read_scores, score_of
from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.made_images import made_data
from tests.train.evals.frozen.scoring.made_protocols import CALLS, FUNCTIONS, an_evaluation, other_data
from train.evals.frozen.scoring.evaluation import FrozenEvaluation
from train.evals.frozen.scoring.run import Scoring

pytestmark = [pytest.mark.usefixtures("shallow"), pytest.mark.long]
ALL = ["random/knn/seed0", "random/linear/seed0", "random/linear/seed1"]
ALL_BN = [name.replace("random", "random-bn") for name in ALL]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def run(evaluation: FrozenEvaluation) -> Scoring:
    scoring = Scoring(evaluation)
    scoring.run()
    return scoring


def results_in(out: Path) -> dict[str, Scores]:
    folders = sorted(path.parent for path in out.rglob("results.json") if ".replaced" not in path.parts)
    found = {str(folder.relative_to(out / "made")): read_scores(folder) for folder in folders}
    return {name: scores for name, scores in found.items() if scores is not None}


def picture_of(folder: Path) -> np.ndarray:
    with Image.open(folder / "predictions.png") as picture:
        return np.asarray(picture)


def test_one_command_stores_every_result_with_all_that_decides_it(tmp_path: Path) -> None:
    data = made_data(tmp_path)
    evaluation = an_evaluation(tmp_path, "report_classes=[left]", data=data)
    scoring = run(evaluation)
    results = results_in(tmp_path)
    assert sorted(results) == sorted([*ALL, *ALL_BN])
    for cell, scores in scoring.scores.items():
        folder = evaluation.folder(cell)
        assert scores == results[str(folder.relative_to(tmp_path / "made"))]
        names, counts = read_counts(folder, scores)
        assert names == data.val.names
        assert score_of(counts["mean_iou"]) == pytest.approx(scores.scores["mean_iou"])
        assert scores.scores["report_mean_iou"] == 0.25
        assert (scores.protocol.id, scores.seed) == (f"r2o.{cell.protocol.name}/1", cell.seed)
        assert scores.protocol.settings["size"] == 64
        assert "seeds" not in scores.protocol.settings
        assert scores.data.images == {"val": 10, "train": 6}
        assert set(scores.seconds) == {"features", "count", "pictures", "rest"}
        picture = picture_of(folder)
        assert picture.shape[1] > 3 * 192
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10
    assert {s.weights.batch_norm for s in results.values()} == {"initial", "data"}
    assert results["random/linear/seed0"].chosen != results["random/linear/seed1"].chosen
    assert results["random/linear/seed0"].chosen != results["random-bn/linear/seed0"].chosen


def test_features_are_computed_once_for_all_protocols_and_commands(tmp_path: Path) -> None:
    data = made_data(tmp_path)
    run(an_evaluation(tmp_path, "knn.level=c4", "baselines=[]", "linear.seeds=[0]", data=data))
    assert data.train.was_read == list(range(6))
    assert len(list((tmp_path / "features").rglob("c4.npy"))) == len(list((tmp_path / "features").rglob("c5.npy"))) == 2
    again = made_data(tmp_path)
    other = an_evaluation(
        tmp_path / "b", "baselines=[]", "linear.seeds=[0]", data=again, protocols=["linear"],
        features=tmp_path / "features",
    )  # fmt: skip
    run(other)
    assert again.train.was_read == []


@pytest.mark.parametrize(
    "setting", ["linear.size=96", "features.dtype=float32", "features.dilate_c5=true", "features.batch_size=5"]
)
def test_other_settings_give_other_features(tmp_path: Path, setting: str) -> None:
    for number, settings in enumerate(((), (setting,))):
        out = tmp_path / str(number)
        run(an_evaluation(out, *settings, "baselines=[]", protocols=["linear"], features=tmp_path / "features"))
    metas = [json.loads(path.read_text()) for path in (tmp_path / "features").rglob("features.json")]
    assert len({meta["fingerprint"] for meta in metas}) == len(metas) == 8  # 2 seeds × 2 parts × 2


def test_what_is_finished_and_unchanged_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(an_evaluation(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    CALLS.clear()
    data = made_data(tmp_path)
    run(an_evaluation(tmp_path, data=data))
    assert CALLS == []
    assert data.val.was_read == data.train.was_read == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "6 of 6 results are finished and unchanged" in capsys.readouterr().err


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(task: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(FUNCTIONS, "knn", killed)
        with pytest.raises(KeyboardInterrupt):
            run(an_evaluation(tmp_path / "a"))
    assert sorted(results_in(tmp_path / "a")) == ["random/linear/seed0"]
    CALLS.clear()
    run(an_evaluation(tmp_path / "a"))
    run(an_evaluation(tmp_path / "b"))
    assert CALLS[:3] == ["NeighbourSettings 0", "LinearSettings 1", "LinearSettings 0"]
    mine, whole = results_in(tmp_path / "a"), results_in(tmp_path / "b")
    assert {n: (s.scores, s.chosen) for n, s in mine.items()} == {n: (s.scores, s.chosen) for n, s in whole.items()}


def test_results_of_other_settings_are_set_aside_also_those_of_seeds_that_are_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(an_evaluation(tmp_path, "baselines=[]"))
    old = (tmp_path / "made/random/linear/seed1/results.json").read_bytes()
    knn = (tmp_path / "made/random/knn/seed0/results.json").read_bytes()
    run(an_evaluation(tmp_path, "baselines=[]", "linear.seeds=[0]", "linear.num_c=3", protocols=["linear"]))
    assert sorted(results_in(tmp_path)) == ["random/knn/seed0", "random/linear/seed0"]
    assert (tmp_path / "made/random/knn/seed0/results.json").read_bytes() == knn
    assert (tmp_path / ".replaced/made/random/linear/seed1/results.json").read_bytes() == old
    assert "linear/seed1: of other settings, weights or images, or damaged; moved to" in capsys.readouterr().err
    run(an_evaluation(tmp_path, "baselines=[]", "linear.seeds=[0]", protocols=["linear"]))
    assert (tmp_path / ".replaced/made/random/linear/seed0-1/results.json").is_file()


def test_seeds_that_are_not_run_now_stay_where_nothing_else_changed(tmp_path: Path) -> None:
    run(an_evaluation(tmp_path, "baselines=[]"))
    CALLS.clear()
    run(an_evaluation(tmp_path, "baselines=[]", "linear.seeds=[0]"))
    assert CALLS == []
    assert sorted(results_in(tmp_path)) == ALL


def test_other_labels_of_the_same_images_make_other_results_from_the_same_features(tmp_path: Path) -> None:
    run(an_evaluation(tmp_path, "baselines=[]"))
    CALLS.clear()
    data = other_data(made_data(tmp_path))
    run(an_evaluation(tmp_path, "baselines=[]", data=data))
    assert len(CALLS) == 3
    assert data.train.was_read == []


@pytest.mark.parametrize("name", ["results.json", "per_image.npz"])
def test_damaged_results_are_said_and_made_again(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(an_evaluation(tmp_path, "baselines=[]"))
    path = tmp_path / "made/random/knn/seed0" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    CALLS.clear()
    run(an_evaluation(tmp_path, "baselines=[]"))
    assert CALLS == ["NeighbourSettings 0"]
    assert f"{name}" in capsys.readouterr().err
    assert sorted(results_in(tmp_path)) == ALL


def test_a_link_among_results_is_refused(tmp_path: Path) -> None:
    run(an_evaluation(tmp_path, "baselines=[]"))
    folder = tmp_path / "made/random/knn/seed0"
    shutil.move(folder / "results.json", tmp_path / "elsewhere.json")
    (folder / "results.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="a link"):
        run(an_evaluation(tmp_path, "baselines=[]"))


def test_protocols_of_class_ids_store_no_cells(tmp_path: Path) -> None:
    scoring = run(an_evaluation(tmp_path, "baselines=[]", protocols=["classes"], has=("class_id",)))
    assert list((tmp_path / "features").rglob("c?.npy")) == []
    assert len(scoring.used) == 1
    scoring.remove_features()
    assert list((tmp_path / "features").iterdir()) == [tmp_path / "features" / ".lock"]


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    evaluation = an_evaluation(tmp_path, "baselines=[]")

    def second(task: object) -> None:
        run(evaluation)

    with pytest.raises(InputError, match="another evaluation works in"):
        run(replace(evaluation, functions={"linear": second, "knn": second}))
