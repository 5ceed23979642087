"""Fine-tuning from random weights that batch norm was measured for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.foundation.errors import InputError
from pipeline.report.report import read_table
from tests.train.evals.test_voc import call
from train.config.evals import EvalVocSettings, load_evaluation_settings
from train.data.resize import resized
from train.evals import voc as command
from train.evals.segmentation.voc_folder import VocFolder
from train.models.backbone import Backbone
from train.models.backbone_file import ExportedBackbone
from train.models.initial import initial_backbone


def test_random_bn_begins_with_the_statistics_of_evenly_spaced_training_images(
    run_folder: Path, voc: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    began: dict[str, list[torch.Tensor]] = {}

    def begin(init: str, **given: Any) -> Backbone:
        began.setdefault(init, list(given["images"]()))
        return initial_backbone(init, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "initial_backbone", begin)
    monkeypatch.setattr(command, "MEASURED_IMAGES", 5)
    assert call(run_folder, voc, "inits=[run,random-bn,random]", "seeds=[0]") == 0
    train = VocFolder.open(voc).split("train")
    squares = [resized(torch.from_numpy(train[i].image).permute(2, 0, 1), 32) for i in (0, 2, 4, 7, 9)]
    torch.testing.assert_close(torch.cat(began["random-bn"]), torch.stack(squares), rtol=0, atol=0)
    results = json.loads((run_folder / "eval-voc" / "results.json").read_bytes())
    found = {init: one["mean_iou"]["mean"] for init, one in results["inits"].items()}
    assert [*found] == ["run", "random-bn", "random"]
    assert found["random-bn"] != found["random"]
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split() == ["IoU", "%", "run", "(n=1)", "random-bn", "(n=1)", "random", "(n=1)"]
    table = read_table([run_folder / "eval-voc"], scores=(), resamples=0)
    assert [(row.shown, row.batch_norm) for row in table.rows] == [
        ("random", "initial"), ("random-bn", "data"), ("run", "weights"),
    ]  # fmt: skip
    rows = {row.shown: table.cells[place, 0].spread.mean for place, row in enumerate(table.rows)}
    assert rows == pytest.approx(found)


def test_a_backbone_without_batch_norm_leaves_random_bn_out(
    run_folder: Path, voc: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = ExportedBackbone(name="vit_s_16", mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint="abc", state_dict={})
    monkeypatch.setattr(command, "load_run_backbone", lambda run: vit)
    settings = load_evaluation_settings(EvalVocSettings, None, ["eval_voc.inits=[random-bn, run]"])
    assert command.prepare(run_folder, voc, settings=settings).trials.inits == ["run"]
    assert "vit_s_16 has no batch norm, so random-bn would be random; left out" in capsys.readouterr().err
    settings = load_evaluation_settings(EvalVocSettings, None, ["eval_voc.inits=[random-bn]"])
    with pytest.raises(InputError, match=r"eval_voc\.inits: vit_s_16 has no batch norm, so random-bn is random"):
        command.prepare(run_folder, voc, settings=settings)
