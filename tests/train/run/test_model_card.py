"""The model card: that its code makes the library's model with these very weights, and what it says of them."""

import ast
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline.artifacts.scores import ImageCounts, write_scores
from pipeline.foundation.errors import InputError
from pipeline.foundation.settings import dump_settings
from train.config.pretrain import PretrainSettings
from train.export import export
from train.models.backbone import Backbone, ViTBackbone, build_backbone
from train.models.backbone_file import save_backbone

RECORD = {
    "fingerprint": "f" * 64, "shards_fingerprint": "5" * 64, "samples": 70, "seed": 3, "init": None,
    "git_commit": None, "versions": {"torch": torch.__version__}, "starts": [{}],
}  # fmt: skip
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def run_of(run: Path, name: str, *, image_size: int = 64, **record: object) -> Backbone:
    """A finished run's folder, as far as an export reads it; gives its backbone."""
    run.mkdir()
    backbone = build_backbone(name, seed=3, image_size=image_size).eval()
    save_backbone(run / "backbone.pt", backbone, name=name, fingerprint=str(RECORD["fingerprint"]))
    settings = PretrainSettings.model_validate({"model": {"backbone": name}})
    (run / "config.yaml").write_text(dump_settings(pretrain=settings))
    (run / "run.json").write_text(json.dumps({**RECORD, **record}))
    return backbone


def code_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def pooled(backbone: Backbone) -> torch.Tensor:
    """What a library's model without classifier gives: mean C5 of a ResNet, the class token of a ViT."""
    if isinstance(backbone, ViTBackbone):
        tokens = backbone._process_input(IMAGES)
        return backbone.encoder(torch.cat([backbone.class_token.expand(2, -1, -1), tokens], 1))[:, 0]
    return backbone(IMAGES).c5.mean((2, 3))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit_s_16"])
@pytest.mark.parametrize(("format", "suffix"), [("torchvision", ".safetensors"), ("timm", ".pth")])
def test_its_code_makes_the_librarys_model_with_equal_outputs(
    name: str, format: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = run_of(tmp_path / "run", name)
    export(tmp_path / "run", tmp_path / f"w{suffix}", format=format)
    monkeypatch.chdir(tmp_path)
    names: dict[str, torch.nn.Module] = {}
    exec(code_of((tmp_path / "w.md").read_text()), names)
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(IMAGES), pooled(backbone), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(
    ("name", "format", "suffix", "said"),
    [
        ("resnet50", "detectron2", ".pth", 'DetectionCheckpointer(model).load("w.pth")'),
        ("resnet50", "detectron2", ".safetensors", "model.backbone.bottom_up.load_state_dict(weights)"),
        ("resnet18", "detectron2", ".pth", "RES2_OUT_CHANNELS = 18, 64"),
        ("resnet101", "detectron2", ".pth", "RES2_OUT_CHANNELS = 101, 256"),
        ("resnet50", "detectron2", ".pth", '"RGB", [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]'),
        ("resnet50", "mmseg", ".pth", 'depth=50, init_cfg=dict(type="Pretrained", checkpoint="w.pth")'),
        ("resnet50", "mmseg", ".safetensors", 'load_file("w.safetensors")'),
    ],
)
def test_its_code_for_detectron2_and_mmsegmentation(
    name: str, format: str, suffix: str, said: str, tmp_path: Path
) -> None:
    run_of(tmp_path / "run", name)
    export(tmp_path / "run", tmp_path / f"w{suffix}", format=format)
    code = code_of((tmp_path / "w.md").read_text())
    ast.parse(code)
    assert said in code


@pytest.mark.usefixtures("shallow")
def test_it_says_what_is_left_out_and_where_the_weights_come_from(tmp_path: Path) -> None:
    run_of(tmp_path / "vit", "vit_s_16", init={"path": "elsewhere/w.pth", "sha256": "1" * 64})
    export(tmp_path / "vit", tmp_path / "w.pth", format="timm")
    card = (tmp_path / "w.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "timm"
    assert "Left out: `c4_layer` and `c5_layer`" in card
    assert f"began with: weights of SHA-256 {'1' * 64}" in card
    assert "elsewhere" not in card  # a path of the machine
    assert "70 images" in card
    assert "None yet." in card
    run_of(tmp_path / "resnet", "resnet18")
    export(tmp_path / "resnet", tmp_path / "w.pth", format="detectron2")
    assert "Left out: the counters `num_batches_tracked`" in (tmp_path / "w.md").read_text()
    export(tmp_path / "resnet", tmp_path / "w.pth", format="mmseg")
    assert "Left out" not in (tmp_path / "w.md").read_text()


def frozen_result(folder: Path, *, label: str, sha256: str | None, seed: int, value: float, size: int = 224) -> None:
    counts = ImageCounts("mean", np.array([value, value]), np.ones(2))
    members = {
        "fingerprint": "f" * 64, "seed": seed, "scores": {"mean_iou": value, "other": 0.9}, "per_class": {},
        "protocol": {
            "id": "r2o.knn/1", "name": "knn", "headline": "mean_iou", "settings": {"size": size, "seeds": [seed]},
        },
        "weights": {
            "label": label, "backbone": "resnet18", "format": "r2o", "sha256": sha256, "batch_norm": "weights",
            "loaded": 1.0,
        },
        "data": {"name": "small", "layout": "voc", "fingerprint": "d" * 64, "images": {"val": 2}, "notes": ()},
        "chosen": {}, "seconds": {}, "versions": {},
    }  # fmt: skip
    folder.mkdir(parents=True)
    write_scores(folder, members, names=("a", "b"), counts={"mean_iou": counts})


@pytest.mark.usefixtures("shallow")
def test_it_shows_what_frozen_features_of_this_very_backbone_scored(tmp_path: Path) -> None:
    run_of(tmp_path / "run", "resnet18")
    sha256 = hashlib.sha256((tmp_path / "run" / "backbone.pt").read_bytes()).hexdigest()
    top = tmp_path / "run" / "eval-frozen"
    for seed, value in enumerate((0.5, 0.25)):
        frozen_result(top / "knn" / f"run-{seed}", label="run", sha256=sha256, seed=seed, value=value)
    frozen_result(top / "knn" / "random-0", label="random", sha256=None, seed=0, value=0.125)
    frozen_result(top / "knn" / "large", label="run", sha256=sha256, seed=0, value=0.75, size=448)
    frozen_result(top / "knn" / "former", label="run", sha256="0" * 64, seed=0, value=0.0625)
    frozen_result(top / ".replaced" / "knn" / "run-0", label="run", sha256=sha256, seed=0, value=0.0, size=96)
    (top / "linked").symlink_to(top / "knn")
    export(tmp_path / "run", tmp_path / "w.pth", format="torchvision")
    figures = (tmp_path / "w.md").read_text().split("## Figures\n\n")[1].split("\n\n")[0]
    assert figures.splitlines() == [
        "r2o.knn/1 on small (`eval-frozen/knn/large`), this backbone: mean_iou 0.7500 over 1 seeds.",
        "r2o.knn/1 on small (`eval-frozen/knn/random-0`), random: mean_iou 0.1250 over 1 seeds.",
        "r2o.knn/1 on small (`eval-frozen/knn/run-0`), this backbone: mean_iou 0.3750 ± 0.1768 over 2 seeds.",
    ]
    (top / "knn" / "large" / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"large/results\.json: no results"):
        export(tmp_path / "run", tmp_path / "v.pth", format="torchvision")
