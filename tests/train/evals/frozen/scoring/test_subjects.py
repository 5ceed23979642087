"""Whose features are scored: labels, identities, K of a run, the random networks beside them."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings, load_settings
from tests.train.evals.frozen.made_images import made_data
from train.config.frozen import FeatureSettings
from train.config.pretrain import PretrainSettings
from train.evals.frozen.scoring.subjects import baselines_of, default_out, named_subjects, safe_name
from train.models.backbone import build_backbone
from train.models.backbone_file import save_backbone

CPU = torch.device("cpu")
SETTINGS = FeatureSettings()

pytestmark = [pytest.mark.usefixtures("shallow"), pytest.mark.long]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 10 epochs of 4 steps whose K goes from 100 to 4."""
    folder = tmp_path / "my run"
    (folder / "checkpoints").mkdir(parents=True)
    curriculum = ("initial_num_clusters=100", "final_num_clusters=4", "hold_epochs=0")
    given = ["epochs=10", "global_batch_size=16", "refine.clustering_group_size=16", "model.backbone=resnet18"]
    overrides = [f"pretrain.{one}" for one in (*given, *(f"curriculum.{one}" for one in curriculum))]
    settings = load_settings(PretrainSettings, "pretrain", None, overrides)
    (folder / "config.yaml").write_text(dump_settings(pretrain=settings))
    (folder / "run.json").write_text(json.dumps(sealed({"samples": 70})))
    backbone = build_backbone("resnet18", seed=3)
    save_backbone(
        folder / "backbone.pt", backbone, name="resnet18", fingerprint="abc", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)
    )
    return folder


def test_a_run_is_named_after_its_folder_and_keeps_its_normalisation_and_k(run: Path) -> None:
    (subject,) = named_subjects(str(run), checkpoint=None)
    assert (subject.label, subject.backbone, subject.batch_norm) == ("my-run", "resnet18", "weights")
    assert (subject.mean, subject.std) == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    settings = load_settings(PretrainSettings, "pretrain", run / "config.yaml")
    assert subject.num_clusters == settings.num_clusters(9)
    assert subject.record.sha256 == hashlib.sha256((run / "backbone.pt").read_bytes()).hexdigest()
    assert subject.record.loaded == 1.0
    assert default_out(str(run), subject) == run / "eval-frozen"
    model = subject.build(made_data(run), SETTINGS, seed=5, size=64, device=CPU)
    assert torch.equal(model.backbone.conv1.weight, build_backbone("resnet18", seed=3).conv1.weight)
    assert model.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not model.training


def test_k_of_a_checkpoint_is_that_of_its_last_step(run: Path, tmp_path: Path) -> None:
    for step in (0, 17, 40):
        (run / "checkpoints" / f"step-{step:08d}.pt").write_bytes((run / "backbone.pt").read_bytes())
    settings = load_settings(PretrainSettings, "pretrain", run / "config.yaml")
    found = named_subjects(str(run), checkpoint="all")
    assert [one.label for one in found] == [f"my-run-step-{step:08d}" for step in (0, 17, 40)]
    assert [one.num_clusters for one in found] == [settings.num_clusters(epoch) for epoch in (0, 4, 9)]
    assert [one.epoch for one in found] == [0, 17 / 4, 10]
    (one,) = named_subjects(str(run), checkpoint=str(run / "checkpoints" / "step-00000017.pt"))
    assert (one.label, one.num_clusters) == ("my-run-step-00000017", settings.num_clusters(4))


def test_weights_of_a_file_are_named_after_it_and_its_content(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "some weights.pt"
    path.write_bytes((run / "backbone.pt").read_bytes())
    (subject,) = named_subjects(str(path), checkpoint=None)
    assert subject.label == f"some-weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert subject.num_clusters is None
    assert default_out(str(path), subject) == Path("runs/eval-frozen") / subject.label
    assert not subject.depends_on_seed


def test_random_weights_depend_on_the_seed_alone_and_take_the_normalisation_of_the_others(run: Path) -> None:
    (subject,) = named_subjects(str(run), checkpoint=None)
    random, with_statistics = baselines_of(subject, ("random", "random-bn"))
    data = made_data(run)
    models = [random.build(data, SETTINGS, seed=seed, size=64, device=CPU) for seed in (1, 1, 2)]
    weights = [model.backbone.conv1.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].std.flatten().tolist() == pytest.approx([0.5, 0.6, 0.7])
    assert data.train.was_read == []
    measured = with_statistics.build(data, SETTINGS, seed=1, size=64, device=CPU)
    assert torch.equal(measured.backbone.conv1.weight, weights[0])
    assert sorted(data.train.was_read) == list(range(6))
    assert not torch.equal(measured.backbone.bn1.running_mean, torch.zeros(64))
    assert (random.record.batch_norm, with_statistics.record.batch_norm) == ("initial", "data")
    assert (random.record.sha256, random.record.loaded) == (None, 0.0)
    assert random.num_clusters == with_statistics.num_clusters == subject.num_clusters is not None


def test_statistics_are_of_evenly_spaced_training_images(run: Path) -> None:
    (subject,) = named_subjects("random-bn", backbone="resnet18", checkpoint=None)
    data = made_data(run)
    subject.build(data, FeatureSettings(batch_norm_images=3), seed=0, size=64, device=CPU)
    assert sorted(data.train.was_read) == [0, 2, 4]


def test_identities_tell_everything_apart(run: Path) -> None:
    data, fewer = made_data(run), FeatureSettings(batch_norm_images=3)
    (loaded,) = named_subjects(str(run), checkpoint=None)
    random, measured = baselines_of(loaded, ("random", "random-bn"))
    found = [
        one.identity(images, settings, seed=seed)
        for one, images, settings, seed in (
            (loaded, data, SETTINGS, 0), (random, data, SETTINGS, 0), (random, data, SETTINGS, 1),
            (measured, data, SETTINGS, 0), (measured, data, fewer, 0), (measured, made_data(run, train=7), SETTINGS, 0),
        )
    ]  # fmt: skip
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 6
    assert loaded.identity(data, SETTINGS, seed=0) == loaded.identity(data, fewer, seed=9)
    assert random.identity(data, SETTINGS, seed=0) == random.identity(data, fewer, seed=0)


def test_random_weights_have_no_second_baseline_of_their_kind() -> None:
    (subject,) = named_subjects("random", backbone="resnet18", checkpoint=None)
    assert [one.label for one in baselines_of(subject, ("random", "random-bn"))] == ["random-bn"]
    (vit,) = named_subjects("random", backbone="vit_s_16", checkpoint=None)
    assert list(baselines_of(vit, ("random", "random-bn"))) == []


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"weights": "random"}, "needs --backbone"),
        ({"weights": "random", "backbone": "resnet18", "format": "timm"}, "neither --format"),
        ({"weights": "random", "backbone": "resnet19"}, "no backbone 'resnet19'"),
        ({"weights": "run", "checkpoint": "all"}, "no checkpoint"),
        ({"weights": "empty"}, "no finished run"),
        ({"weights": "missing"}, "missing"),
    ],
)
def test_what_is_wrong_is_named(run: Path, tmp_path: Path, given: dict[str, str], match: str) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": run, "empty": tmp_path / "empty", "missing": tmp_path / "missing.pth"}
    weights = given["weights"]
    with pytest.raises(InputError, match=match):
        named_subjects(**{"checkpoint": None, **given, "weights": str(places.get(weights, weights))})


def test_names_of_folders_are_no_paths() -> None:
    assert safe_name("../a b/ü") == "a-b--"
    assert safe_name("...") == "unnamed"
