"""What the probe tells of known masks, against loops over pixels and the method called by hand."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torchvision.transforms.functional import normalize, to_tensor

from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.numerics.test_overlap import enlarged, overlaps_by_hand
from tests.train.evals.frozen.test_superpixels import truth_of
from tests.train.run.test_probe import SETTINGS, model_of, probe_of, settings_of
from train.config.frozen import LinearSettings
from train.config.pretrain import PretrainSettings
from train.evals.datasets.annotated import UNLABELLED, Annotated, DataSet
from train.evals.frozen.protocol import SplitFeatures, Task
from train.evals.frozen.protocols import linear
from train.evals.segmentation.voc_folder import VocFolder
from train.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from train.models.frozen import FrozenModel
from train.r2o.kmeans import seeding_uniforms


class DrawnLabels:
    """Labels as a list of images."""

    def __init__(self, labels: list[np.ndarray]) -> None:
        self.names, self.labels = tuple(map(str, range(len(labels)))), labels
        self.digest = self.image_digest = ""

    def read(self, index: int) -> Annotated:
        return Annotated(np.zeros((64, 64, 3), np.uint8), self.labels[index])


@pytest.mark.parametrize("real", [False, True])
def test_the_figure_is_of_refinement_as_in_training(shards: Path, voc: Path, voc_shards: Path, real: bool) -> None:
    settings = settings_of(probe_masks=voc, probe_superpixels=str(voc_shards) if real else None)
    model = model_of(settings)
    figures = probe_of(shards, settings).figures(model, epoch=1)
    names = [f"val_{place * 21 // 16:06d}" for place in range(16)]
    truth, of_slic = truth_of(voc_shards), []
    folder, overlaps = voc / "VOC2012", []
    for group in (0, 1):
        chosen = names[8 * group : 8 * group + 8]
        images = [to_tensor(Image.open(folder / "JPEGImages" / f"{name}.jpg")) for name in chosen]
        place = torch.arange(64) * 5 // 64
        regions = (place[:, None] * 5 + place).int().expand(8, 64, 64)
        if real:
            regions = torch.stack([torch.from_numpy(truth[f"{name}.jpg"][0].astype(np.int32)) for name in chosen])
        uniforms = seeding_uniforms(settings.num_clusters(1), seed=0, step=0, first_group=group, num_groups=1)
        model.refinement = model.refinement._replace(max_superpixels=64)
        refined = model.refine(
            torch.stack([normalize(i, IMAGENET_MEAN, IMAGENET_STD) for i in images]), regions, uniforms
        ).numpy()
        for name, masks, superpixels in zip(chosen, refined, regions.numpy(), strict=True):
            labels = np.asarray(Image.open(folder / "SegmentationClass" / f"{name}.png"))
            overlaps += overlaps_by_hand(masks.repeat(16, 0).repeat(16, 1), labels, void=255)
            of_slic += overlaps_by_hand(enlarged(superpixels, labels.shape), labels, void=255)
    assert figures["abo"] == pytest.approx(np.mean(overlaps))
    assert 0.1 < figures["abo"] < 0.9
    assert figures.get("abo_slic") == (pytest.approx(np.mean(of_slic)) if real else None)


def test_linear_segmentation_is_of_c5_and_scored_on_other_images(shards: Path, voc: Path) -> None:
    settings = settings_of(probe_masks=voc)
    model = model_of(settings)
    figure = probe_of(shards, settings).figures(model, epoch=1)["linear_miou"]
    backbone, folder = copy.deepcopy(model.online["backbone"]).eval(), voc / "VOC2012"
    cells, labels = [], []
    for name in (f"val_{place * 21 // 16:06d}" for place in range(16)):
        pixels = to_tensor(Image.open(folder / "JPEGImages" / f"{name}.jpg"))
        with torch.no_grad():
            cells.append(backbone(normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)[None]).c5[0].permute(1, 2, 0).numpy())
        labels.append(np.asarray(Image.open(folder / "SegmentationClass" / f"{name}.png")).astype(np.int16))
    labels = [np.where(one == 255, np.int16(UNLABELLED), one) for one in labels]
    lists = {part: DrawnLabels(labels[first::2]) for first, part in enumerate(("train", "val"))}
    of_parts = {part: np.stack(cells[first::2]) for first, part in enumerate(("train", "val"))}

    def features(part: str, level: str, size: int) -> SplitFeatures:
        assert (level, size) == ("c5", 64)
        return SplitFeatures(images=lists[part], cells=of_parts[part], pooled=np.zeros((8, 1), np.float32))

    data = DataSet(
        layout="voc",
        root=voc,
        classes=VocFolder.open(voc).classes,
        background=0,
        has=frozenset({"labels"}),
        train_has=frozenset({"labels"}),
        **lists,
    )
    few = LinearSettings(size=64, log10_c=(-4, 2), num_c=3, max_iterations=100)
    cpu = torch.device("cpu")
    task = Task(data=data, settings=few, features=features, seed=0, device=cpu, load_model=FrozenModel)
    assert figure == pytest.approx(linear.score(task).scores["mean_iou"], abs=1e-3)
    assert 0 < figure < 1


@pytest.mark.usefixtures("shallow")
def test_linear_segmentation_that_cannot_be_is_said(
    shards: Path, voc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {**SETTINGS, "data": {"image_size": 72, "view_size": 64, "num_workers": 0}, "run": {"probe_masks": voc}}
    settings = PretrainSettings.model_validate(odd)  # C5 has 3 × 3 cells of 24 pixels
    assert "linear_miou" in probe_of(shards, settings).figures(model_of(settings), epoch=0)
    capsys.readouterr()
    odd["data"]["image_size"] = 70
    settings = PretrainSettings.model_validate(odd)
    assert set(probe_of(shards, settings).figures(model_of(settings), epoch=0)) == {"knn_top1", "abo"}
    assert "pretrain: probe: no linear_miou of" in capsys.readouterr().err


def test_masks_that_come_from_no_clustering_are_not_compared(shards: Path, voc: Path) -> None:
    settings = PretrainSettings.model_validate(
        {**SETTINGS, "refine": {"clustering_group_size": 8, "clustering": "none"}, "run": {"probe_masks": voc}}
    )
    assert set(probe_of(shards, settings).figures(model_of(settings), epoch=0)) == {"knn_top1", "linear_miou"}


def test_folders_that_will_not_do_are_named(shards: Path, voc: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        probe_of(shards, settings_of(probe_masks=tmp_path / "none"))
    with pytest.raises(InputError, match=r"run.probe_superpixels: .* lacks 16 of 16 images, such as val_000000"):
        probe_of(shards, settings_of(probe_masks=voc, probe_superpixels=str(shards)))
    with pytest.raises(ValidationError, match="probe_superpixels needs probe_masks"):
        settings_of(probe_superpixels=str(shards))
    few = PretrainSettings.model_validate(
        {**SETTINGS, "global_batch_size": 32, "refine": {}, "run": {"probe_masks": voc}}
    )
    with pytest.raises(InputError, match="lists 21 images as val, less than one clustering group of 32"):
        probe_of(shards, few)
