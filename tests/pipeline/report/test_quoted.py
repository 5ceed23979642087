"""Which of the paper's figures stand beside a column, and what is said to differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.scores import ImageCounts
from pipeline.report.quoted import PAPER_SETTINGS, quoted_beside
from pipeline.report.report import read_table
from tests.pipeline.report.made_results import Write
from train.config.evals import EvalVocSettings
from train.config.frozen import AboSettings, CubSettings

CUB = {"layout": "cub", "images": {"train": 10_000, "val": 1000}}


def marks(folder: Path, which: Any = "main", *scores: str) -> dict[tuple[str, str], str]:
    columns = read_table([folder], scores=scores, resamples=0).columns
    return {(one.row.table, one.row.method): one.mark for one in quoted_beside(columns, which)}


@pytest.mark.parametrize(
    ("settings", "data", "of_features", "of_others"),
    [
        ({"clusters": 5}, CUB, "the same as far as told", "other protocol"),
        ({"cub": {"clusters": 5}}, CUB, "the same as far as told", "other protocol"),
        ({"clusters": 4}, CUB, "other protocol", "other protocol"),
        ({}, CUB, "other protocol", "other protocol"),
        ({"clusters": 5}, {**CUB, "images": {"val": 5794}}, "other data", "other protocol/data"),
        ({"clusters": 5}, {**CUB, "layout": "labels"}, "other data", "other protocol/data"),
    ],
)
def test_rows_of_table_3(
    write: Write, tmp_path: Path, settings: dict[str, Any], data: dict[str, Any], of_features: str, of_others: str
) -> None:
    write("a", protocol="cub", headline="image_mean_of_both", settings=settings, data=data)
    found = marks(tmp_path)
    assert len(found) == 8
    for (table, method), mark in found.items():
        assert table == "Table 3"
        assert mark == (of_features if method in ("MoCo v2", "BYOL†", "R2O") else of_others)


def test_figures_of_abo_and_lost(write: Write, tmp_path: Path) -> None:
    counts = ImageCounts("mean", np.ones(4), 2 * np.ones(4))
    write(
        "a",
        protocol="abo",
        headline="over_objects",
        counts=counts,
        settings={"group_size": 32},
        data={"layout": "coco"},
    )
    write("b", protocol="discovery", headline="corloc", counts=counts)
    assert marks(tmp_path) == {
        ("A.8", "R2O pretrained on ImageNet"): "other data",
        ("A.8", "R2O pretrained on COCO"): "the same as far as told",
        ("LOST", "LOST on DINO's ResNet-50"): "other protocol/data",
    }


def test_figures_of_fine_tuning(write_fine_tuning: Callable[..., Path], tmp_path: Path) -> None:
    paper = EvalVocSettings(train_list="trainaug").model_dump(mode="json")
    write_fine_tuning("a/eval-voc", {"run": {0: 0.5}}, protocol=paper, train_images=10_582, val_images=1449)
    methods = ["Supervised", "MoCo v2", "BYOL†", "DenseCL", "DetCon_B†", "ReSim", "PixPro", "DetCo", "LEWEL", "R2O"]
    assert list(marks(tmp_path)) == [("Table A1", method) for method in methods]
    assert set(marks(tmp_path).values()) == {"the same as far as told"}
    every = marks(tmp_path, "all")
    assert {table for table, _ in every} == {"Table 2", "Table 4", "Table 5", "Table A1", "Table A3", "Table A5"}
    assert marks(tmp_path, "none") == {}
    write_fine_tuning("b/eval-voc", {"run": {0: 0.5}}, protocol={**paper, "iterations": 10}, val_images=6)
    assert set(marks(tmp_path / "b").values()) == {"other protocol/data"}


def test_they_stand_beside_headlines_only(write: Write, tmp_path: Path) -> None:
    write("a", protocol="cub", headline="image_mean_of_both", scores={"image_foreground": 0.5})
    assert marks(tmp_path, "all", "image_foreground") == {}
    write("b", protocol="knn")
    assert len(marks(tmp_path, "all", "all")) == 8


def test_settings_of_the_paper_are_settings_of_ours() -> None:
    kinds = {"voc": EvalVocSettings, "cub": CubSettings, "abo": AboSettings}
    for protocol, told in PAPER_SETTINGS.items():
        assert told.keys() <= kinds[protocol].model_fields.keys()
        assert kinds[protocol].model_validate(told)
