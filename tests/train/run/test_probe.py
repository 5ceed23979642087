"""What the probe tells, against scikit-learn and NumPy; that it leaves no trace, and says the same on two ranks."""

import copy
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.test_knn import sklearn_top1
from train.config.pretrain import PretrainSettings
from train.data.shards.open import open_shards
from train.data.shards.reader import ShardReader
from train.distributed.world import World
from train.engine.build import build_model
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from train.r2o.model import R2O
from train.run.probe import Probe

PROGRAM = Path(__file__).with_name("probe_program.py")
ALONE = World(0, 1, torch.device("cpu"))
SETTINGS = {
    "epochs": 4,
    "global_batch_size": 16,
    "data": {"image_size": 64, "view_size": 64, "num_workers": 0},
    "model": {"backbone": "resnet18", "head_hidden_size": 8, "projection_size": 4},
    "refine": {"clustering_group_size": 8},
    "curriculum": {"initial_num_clusters": 6, "hold_epochs": 1},
}


def settings_of(**run: Any) -> PretrainSettings:
    return PretrainSettings.model_validate({**SETTINGS, "run": run})


def probe_of(shards: Path, settings: PretrainSettings, **changed: Any) -> Probe:
    manifest = Manifest.read(shards)
    reader = open_shards(str(shards), manifest, settings.data)
    reader.manifest = manifest.model_copy(update=changed)
    return Probe(reader, settings, ALONE)


def model_of(settings: PretrainSettings) -> R2O:
    """A model whose running statistics have been somewhere."""
    model = build_model(settings, max_superpixels=25).train()
    model.online["backbone"](torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    return model


def features_by_hand(shards: Path, model: R2O, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Classes and mean C5 of samples, with Pillow's resize and a copy of the network."""
    backbone = copy.deepcopy(model.online["backbone"]).eval()
    unverified = settings_of().data.model_copy(update={"verify": False})
    reader = open_shards(str(shards), Manifest.read(shards), unverified)
    raws = [reader.read(i) for i in ids]
    classes = np.array([json.loads(raw.members["json"])["class_name"] for raw in raws])
    rows = []
    for raw in raws:
        (path := shards.parent / "one.jpg").write_bytes(raw.members["jpg"])
        pixels = to_tensor(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
        with torch.no_grad():
            rows.append(backbone(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)[None]).c5.mean((2, 3))[0].numpy())
    return classes, np.stack(rows)


@pytest.mark.usefixtures("shallow")
def test_the_figure_is_of_the_shards_images(shards: Path) -> None:
    settings = settings_of()
    model = model_of(settings)
    classes, rows = features_by_hand(shards, model, list(range(70)))
    is_query = np.arange(70) % 5 == 0
    expected = sklearn_top1(rows[~is_query], classes[~is_query], rows[is_query], classes[is_query])
    assert probe_of(shards, settings).figures(model, epoch=0) == {"knn_top1": pytest.approx(expected)}


def test_images_are_spread_over_the_shards(shards: Path) -> None:
    settings = settings_of(probe_images=10)
    model = model_of(settings)
    classes, rows = features_by_hand(shards, model, list(range(0, 70, 7)))
    is_query = np.arange(10) % 5 == 0
    expected = sklearn_top1(rows[~is_query], classes[~is_query], rows[is_query], classes[is_query])
    assert probe_of(shards, settings).figures(model, epoch=0) == {"knn_top1": pytest.approx(expected)}


def test_few_of_many_shards_are_read(shards: Path) -> None:
    settings, asked = settings_of(probe_images=500), []
    manifest = Manifest.read(shards)
    files = open_shards(str(shards), manifest, settings.data).files
    small = ShardReader(files, manifest)
    large = ShardReader(files, manifest.model_copy(update={"shards": manifest.shards * 40, "stored": 2800}))
    large.read = lambda sample_id, _: asked.append(sample_id) or small.read(sample_id % 70)
    Probe(large, settings, ALONE)
    of_shard = Counter(large.place_of(sample_id)[0] for sample_id in asked)
    assert len(asked) == len(set(asked)) > 400
    assert len(of_shard) == 32
    assert max(np.diff(sorted(of_shard))) <= 7


def test_a_probe_leaves_everything_as_it_was(shards: Path, voc: Path, voc_shards: Path) -> None:
    settings = settings_of(probe_masks=voc, probe_superpixels=str(voc_shards))
    model = model_of(settings)
    model.online["backbone"].layer2.eval()  # not all parts need to be in one mode
    probe = probe_of(shards, settings)

    def state() -> list[Any]:
        # not Python's own, which beartype draws from at every check
        generators = [torch.get_rng_state().tolist(), repr(np.random.get_state())]  # noqa: NPY002
        modes = [(name, m.training, getattr(m, "track_running_stats", None)) for name, m in model.named_modules()]
        return [generators, modes, [(p.requires_grad, p.grad) for p in model.parameters()]]

    before, tensors = state(), {name: value.clone() for name, value in model.state_dict().items()}
    assert set(probe.figures(model, epoch=1)) == {"knn_top1", "linear_miou", "abo", "abo_slic"}
    assert state() == before
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    assert probe.figures(model, epoch=1) == probe.figures(model, epoch=1)


@pytest.mark.parametrize(
    ("classes", "probe_images"), [((), 1000), (("class0",), 1000), (("class0", "other"), 1000), (None, 1), (None, 2)]
)
def test_without_two_classes_or_enough_images_there_is_no_figure(
    shards: Path, classes: tuple[str, ...] | None, probe_images: int
) -> None:
    settings = settings_of(probe_images=probe_images)
    changed = {} if classes is None else {"classes": classes}
    figures = probe_of(shards, settings, **changed).figures(model_of(settings), epoch=0)
    assert figures == {} or (probe_images == 2 and classes is None)


@pytest.mark.usefixtures("shallow")
def test_a_damaged_image_is_left_out_or_refused_as_the_run_says(shards: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(shards, tmp_path / "shards"))
    tar = damaged / "r2o-000000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"\xff\xd8", b"\0\0", 1))  # where the first JPEG begins
    skip = {**SETTINGS["data"], "verify": False, "on_damage": "skip"}
    settings = PretrainSettings.model_validate({**SETTINGS, "data": skip})
    model = model_of(settings)
    classes, rows = features_by_hand(damaged, model, list(range(1, 70)))
    is_query = np.arange(1, 70) % 5 == 0
    expected = sklearn_top1(rows[~is_query], classes[~is_query], rows[is_query], classes[is_query])
    assert probe_of(damaged, settings).figures(model, epoch=0) == {"knn_top1": pytest.approx(expected)}
    with pytest.raises(InputError, match="sample 000000000 is damaged"):
        probe_of(damaged, PretrainSettings.model_validate({**SETTINGS, "data": {**skip, "on_damage": "fail"}}))


@pytest.mark.processes
def test_two_ranks_tell_what_one_does(shards: Path, voc: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"pretrain": {**SETTINGS, "run": {"probe_masks": str(voc), "probe_images": 69}}}))
    for ranks in (1, 2):
        launcher = [] if ranks == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [sys.executable, *launcher, str(PROGRAM), str(tmp_path), str(shards), str(config)]
        subprocess.run(command, check=True, timeout=240)
    alone, *both = (json.loads((tmp_path / f"figures-{n}.json").read_text()) for n in ("1-0", "2-0", "2-1"))
    assert both[0] == both[1]
    assert both[0]["knn_top1"] == alone["knn_top1"]
    assert both[0]["linear_miou"] == pytest.approx(alone["linear_miou"], abs=1e-3)
    assert both[0]["abo"] == pytest.approx(alone["abo"], abs=0.01)  # a cell on the edge of two clusters may change over
