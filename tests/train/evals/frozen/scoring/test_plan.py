"""Which protocols run on what data, and what decides their fingerprints."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import ShardSettings
from tests.train.evals.frozen.made_images import made_data
from tests.train.made_shards import write_images, write_shards
from train.config.evals import load_evaluation_settings
from train.config.frozen import FROZEN_PROTOCOLS, AboSettings, EvalFrozenSettings
from train.evals.frozen.scoring.functions import SCORE_FUNCTIONS
from train.evals.frozen.scoring.plan import (
    check_report_names,
    check_superpixels,
    data_fingerprint,
    deciding_settings,
    named_protocols,
    needs_of,
    plan_protocols,
    settings_of,
)

ABO = FROZEN_PROTOCOLS["abo"]


def names(*arguments: object) -> list[str]:
    return [protocol.name for protocol in plan_protocols(*arguments).chosen]  # type: ignore[arg-type]


def test_every_protocol_has_code_and_settings() -> None:
    assert set(SCORE_FUNCTIONS) == set(FROZEN_PROTOCOLS)
    for protocol in FROZEN_PROTOCOLS.values():
        assert settings_of(EvalFrozenSettings(), protocol).seeds


def test_protocols_are_those_that_the_data_allow_and_why_others_are_left_out_is_said(tmp_path: Path) -> None:
    labels = made_data(tmp_path)
    assert names(labels, None) == ["linear", "knn", "context", "overclustering"]
    left_out = plan_protocols(labels, None).left_out
    assert left_out["discovery"] == "draw some"
    assert "no objects" in left_out["abo"]
    assert names(made_data(tmp_path, has=("class_id", "boxes")), None) == ["discovery", "classes"]
    assert names(replace(labels, train=None, train_has=frozenset()), None) == ["overclustering"]


def test_birds_are_for_their_layout_or_for_whoever_asks(tmp_path: Path) -> None:
    objects = made_data(tmp_path, has=("objects",))
    assert names(objects, None) == ["abo"]
    assert (
        "layout cub; name it by --protocols or eval_frozen.protocols" in plan_protocols(objects, None).left_out["cub"]
    )
    assert names(replace(objects, layout="cub"), None) == ["cub", "abo"]
    assert names(objects, ["cub"]) == ["cub"]


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no protocol can be run on it \(discovery: draw some\)"):
        plan_protocols(made_data(tmp_path), ["discovery"])
    with pytest.raises(InputError, match="no protocol 'lineal'; there are linear, knn"):
        named_protocols(["lineal"])
    with pytest.raises(InputError, match=r"no class 'middle'; .* has left, right"):
        check_report_names(["left", "middle"], made_data(tmp_path))


def test_needs_are_those_of_the_protocols() -> None:
    assert needs_of(named_protocols(["knn", "cub"])) == {"labels", "objects"}


def test_seeds_are_no_part_of_what_decides_a_result_and_everything_else_is() -> None:
    linear = FROZEN_PROTOCOLS["linear"]

    def deciding(*overrides: str) -> dict[str, object]:
        settings = load_evaluation_settings(EvalFrozenSettings, None, [f"eval_frozen.{one}" for one in overrides])
        return deciding_settings(settings, linear)

    assert deciding("linear.seeds=[3]", "knn.k=[5]", "baselines=[]", "features.batch_norm_images=7") == deciding()
    for change in ("linear.num_c=3", "linear.level=c4", "features.dtype=float32", "report_classes=[left]"):
        assert deciding(change) != deciding()


def test_the_fingerprint_of_data_is_of_what_the_protocol_sees(tmp_path: Path) -> None:
    data = made_data(tmp_path, has=("labels", "objects"))
    linear, abo = FROZEN_PROTOCOLS["linear"], FROZEN_PROTOCOLS["abo"]
    other_train = replace(data, digests={n: {**of, "train": "x"} for n, of in data.digests.items()})
    other_objects = replace(data, digests={**data.digests, "objects": {"val": "x"}})
    assert data_fingerprint(other_train, linear) != data_fingerprint(data, linear)
    assert data_fingerprint(other_train, abo) == data_fingerprint(data, abo)
    assert data_fingerprint(other_objects, linear) == data_fingerprint(data, linear)
    assert data_fingerprint(other_objects, abo) != data_fingerprint(data, abo)
    assert data_fingerprint(replace(data, classes=("a", "b")), abo) != data_fingerprint(data, abo)
    assert data_fingerprint(replace(data, notes=("x",), root=Path("y")), abo) == data_fingerprint(data, abo)


def test_the_number_of_clusters_that_is_taken_decides_about_abo_alone() -> None:
    given = EvalFrozenSettings(abo=AboSettings(clusters=7))
    taken = [deciding_settings(settings, ABO, num_clusters=k)["clusters"]
             for settings, k in ((EvalFrozenSettings(), None), (EvalFrozenSettings(), 30), (given, 30))]  # fmt: skip
    assert taken == [4, 30, 7]
    linear = FROZEN_PROTOCOLS["linear"]
    assert deciding_settings(given, linear, num_clusters=30) == deciding_settings(given, linear)


def test_superpixels_decide_by_their_content_and_not_by_their_place(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=4)
    grids = {name: ShardSettings.model_validate({"superpixels": {"backend": "grid", "size": size}})
             for name, size in {"a": 32, "b": 32, "c": 16}.items()}  # fmt: skip
    for name, settings in grids.items():
        write_shards(tmp_path / "images", tmp_path / name, settings)
    decided = {
        name: deciding_settings(EvalFrozenSettings(abo=AboSettings(superpixels=str(tmp_path / name))), ABO)
        for name in grids
    }
    assert decided["a"] == decided["b"] != decided["c"]
    assert str(tmp_path) not in str(decided)


def test_superpixels_of_other_images_are_refused_before_anything_runs(tmp_path: Path) -> None:
    write_images(tmp_path / "images", count=1)
    write_shards(tmp_path / "images", tmp_path / "shards", ShardSettings.model_validate({"superpixels": {"size": 32}}))
    settings = EvalFrozenSettings(abo=AboSettings(superpixels=str(tmp_path / "shards")))
    data = made_data(tmp_path / "data", has=("objects",))
    with pytest.raises(InputError, match=r"eval_frozen\.abo\.superpixels: .* lacks"):
        check_superpixels(plan_protocols(data, ["abo"]), data, settings)
    check_superpixels(plan_protocols(data, ["cub"]), data, settings)
    check_superpixels(plan_protocols(data, ["abo"]), data, EvalFrozenSettings())
