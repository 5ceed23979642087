"""Exports that other libraries load: equal outputs where they are installed, tables of their names where not."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import yaml

from pipeline.foundation.errors import InputError
from pipeline.verbs.training import EXPORT_FORMATS
from train.models.backbone import Backbone, build_backbone
from train.models.backbone_file import save_backbone
from train.models.formats import FORMATS, names_in, to_format, write_weights
from train.models.weights.init import load_init
from train.models.weights.load import load_backbone

ROOT = Path(__file__).parents[3]
TABLES = Path(__file__).with_name("format_keys")
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
FITTING = [(name, format) for name in RESNETS for format in FORMATS]
FITTING += [(name, format) for name in ("vit_s_16", "vit_b_16") for format in ("torchvision", "timm")]


def backbone_of(name: str, seed: int = 3, image_size: int = 64) -> Backbone:
    """With running statistics that are not those of a fresh network."""
    model = build_backbone(name, seed=seed, image_size=image_size)
    generator = torch.Generator().manual_seed(seed)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def exported(name: str, format: str, **kwargs: Any) -> dict[str, torch.Tensor]:
    return to_format(backbone_of(name, **kwargs).state_dict(), name, format)


def table_of(library: str) -> dict[str, tuple[int, ...]]:
    """Name → shape, from the library's own source."""
    lines = (TABLES / f"{library}_resnet50.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return {key: () if shape == "-" else tuple(map(int, shape.split("x"))) for key, shape in rows}


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_and_timm_compute_the_same_with_a_resnet(name: str) -> None:
    ours = backbone_of(name)(IMAGES)
    theirs = torchvision.models.get_model(name).eval()
    missing, unexpected = theirs.load_state_dict(exported(name, "torchvision"), strict=False)
    assert (sorted(missing), unexpected) == (["fc.bias", "fc.weight"], [])
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(theirs(IMAGES), ours.c5.mean((2, 3)))
    features = timm.create_model(name, num_classes=0, pretrained=False).eval()
    features.load_state_dict(exported(name, "timm"))
    torch.testing.assert_close(features.forward_features(IMAGES), ours.c5)


def test_torchvision_and_timm_compute_the_same_with_a_vit() -> None:
    model = backbone_of("vit_s_16")
    tokens = model.encoder(torch.cat([model.class_token.expand(2, -1, -1), model._process_input(IMAGES)], 1))
    theirs = timm.create_model("vit_small_patch16_224", img_size=64, num_classes=0, pretrained=False).eval()
    theirs.load_state_dict(exported("vit_s_16", "timm"))
    torch.testing.assert_close(theirs.forward_features(IMAGES), tokens, atol=1e-5, rtol=1e-4)
    vision = torchvision.models.VisionTransformer(64, 16, 12, 6, 384, 1536).eval()
    missing, unexpected = vision.load_state_dict(exported("vit_s_16", "torchvision"), strict=False)
    assert (sorted(missing), unexpected) == (["heads.head.bias", "heads.head.weight"], [])
    vision.heads = torch.nn.Identity()
    torch.testing.assert_close(vision(IMAGES), tokens[:, 0])


@pytest.mark.parametrize(("library", "format"), [("detectron2", "detectron2"), ("mmseg", "mmseg")])
def test_every_name_and_shape_of_their_resnet50_is_covered_and_no_other(library: str, format: str) -> None:
    assert {key: tuple(value.shape) for key, value in exported("resnet50", format).items()} == table_of(library)


def test_detectron2_gets_each_weight_under_its_own_name() -> None:
    """That names are not exchanged: some typed by hand, from both modules."""
    ours, theirs = backbone_of("resnet50").state_dict(), exported("resnet50", "detectron2")
    pairs = {
        "conv1.weight": "stem.conv1.weight",
        "bn1.running_var": "stem.conv1.norm.running_var",
        "layer1.0.bn1.weight": "res2.0.conv1.norm.weight",
        "layer1.0.downsample.0.weight": "res2.0.shortcut.weight",
        "layer1.0.downsample.1.bias": "res2.0.shortcut.norm.bias",
        "layer3.5.conv3.weight": "res4.5.conv3.weight",
        "layer4.2.bn3.running_mean": "res5.2.conv3.norm.running_mean",
    }
    for our_key, their_key in pairs.items():
        assert torch.equal(ours[our_key], theirs[their_key]), our_key


@pytest.mark.parametrize("body", ["backbone.bottom_up.{}", "backbone.{}"])
def test_detectron2s_checkpointer_is_told_to_match_names_by_their_ends(body: str, tmp_path: Path) -> None:
    """It does so only where the file says `matching_heuristics`, and takes the longest end of each of its own names."""
    path = tmp_path / "r50.pth"
    write_weights(path, exported("resnet50", "detectron2"), "detectron2", metadata={})
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True
    assert content["__author__"] != "Caffe2"  # whose names it would rewrite first
    c4 = "bottom_up" not in body  # there, res5 is in the heads
    for key in table_of("detectron2"):
        theirs = f"roi_heads.{key}" if c4 and key.startswith("res5.") else body.format(key)
        assert max((one for one in content["model"] if theirs.endswith(f".{one}")), key=len) == key


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("name", "format"), [(n, f) for n, f in FITTING if n in ("resnet18", "resnet50", "vit_s_16")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_can_be_begun_with(name: str, format: str, suffix: str, tmp_path: Path) -> None:
    model = backbone_of(name)
    path = tmp_path / f"weights{suffix}"
    write_weights(path, to_format(model.state_dict(), name, format), format, metadata={"backbone": name})
    found = load_init(path, name, image_size=64)
    for key, value in model.state_dict().items():
        if key in found.absent:
            assert key.startswith(("c4_layer", "c5_layer"))
        else:
            assert torch.equal(found.weights[key], value), key
    assert bool(found.absent) == name.startswith("vit")
    same_names = name.startswith("resnet") and format != "detectron2"
    assert found.format == ("torchvision" if same_names else format)


def test_our_own_file_and_a_supervised_one_can_be_begun_with(tmp_path: Path) -> None:
    model = backbone_of("vit_s_16", image_size=64)
    save_backbone(tmp_path / "backbone.pt", model, name="vit_s_16", fingerprint="f")
    own = load_init(tmp_path / "backbone.pt", "vit_s_16", image_size=64)
    assert own.absent == ()
    assert all(torch.equal(value, own.weights[key]) for key, value in model.state_dict().items())
    supervised = torchvision.models.resnet18()
    torch.save(supervised.state_dict(), tmp_path / "resnet18.pth")
    assert "fc.weight" not in load_init(tmp_path / "resnet18.pth", "resnet18").weights
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "timm.pth")
    assert load_init(tmp_path / "timm.pth", "resnet18").absent == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer4.1.bn2.bias"), "1 weights are missing, the first is layer4.1.bn2.bias"),
        (lambda w: w.update({"neck.weight": torch.ones(1)}), "1 weights are not of it, the first is neck.weight"),
        (
            lambda w: w.update({"conv1.weight": torch.ones(64, 3, 3, 3)}),
            r"conv1.weight is \(64, 3, 3, 3\) torch.float32",
        ),
        (lambda w: w.update({"conv1.weight": w["conv1.weight"].long()}), "int64, but"),
        (lambda w: w["conv1.weight"].fill_(torch.inf), "conv1.weight holds values that are not finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_its_first_difference(change: Any, message: str, tmp_path: Path) -> None:
    weights = exported("resnet18", "torchvision")
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message) as caught:
        load_init(tmp_path / "w.pth", "resnet18")
    assert str(tmp_path / "w.pth") in str(caught.value)
    with pytest.raises(InputError, match="resnet50 as"):
        load_init(tmp_path / "w.pth", "resnet50")


def test_counters_are_all_there_or_all_absent(tmp_path: Path) -> None:
    """Files of torchvision's first years have none."""
    weights = exported("resnet18", "torchvision")
    weights["bn1.num_batches_tracked"].fill_(7)
    counters = [key for key in weights if key.endswith("num_batches_tracked")]
    torch.save(weights, tmp_path / "w.pth")
    assert load_init(tmp_path / "w.pth", "resnet18").weights["bn1.num_batches_tracked"] == 7
    torch.save({key: value for key, value in weights.items() if key not in counters}, tmp_path / "w.pth")
    begun = load_init(tmp_path / "w.pth", "resnet18")
    assert begun.absent == ()
    assert [begun.weights[key].item() for key in counters] == [0] * len(counters)
    assert all(torch.equal(begun.weights[key], weights[key]) for key in weights.keys() - set(counters))
    del weights["layer2.0.bn1.num_batches_tracked"]
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"the first is layer2\.0\.bn1\.num_batches_tracked"):
        load_init(tmp_path / "w.pth", "resnet18")


@pytest.mark.parametrize(
    ("name", "format", "classifier", "not_its_own"),
    [
        ("resnet18", "torchvision", "fc", "head"),
        ("resnet18", "detectron2", None, "fc"),
        ("vit_s_16", "torchvision", "heads.head", "head"),
        ("vit_s_16", "timm", "head", "fc"),
    ],
)
def test_only_the_librarys_own_classifier_is_left_out(
    name: str, format: str, classifier: str | None, not_its_own: str, tmp_path: Path
) -> None:
    weights = exported(name, format)
    if classifier:
        torch.save({**weights, f"{classifier}.weight": torch.ones(2, 3), f"{classifier}.bias": torch.ones(2)},
                   tmp_path / "w.pth")  # fmt: skip
        assert load_init(tmp_path / "w.pth", name, image_size=64).format == format
    torch.save({**weights, f"{not_its_own}.weight": torch.ones(2, 3)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"the first is {not_its_own}\.weight"):
        load_init(tmp_path / "w.pth", name, image_size=64)


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_what_stands_beside_a_state_dict_is_counted_not_dropped(wrapper: str, tmp_path: Path) -> None:
    torch.save({wrapper: exported("resnet18", "torchvision"), "ema": {}, "epoch": 3}, tmp_path / "w.pth")
    assert load_backbone(tmp_path / "w.pth").left_out == {"ema": 1, "epoch": 1}
    assert "left out: ema (1), epoch (1)" in load_init(tmp_path / "w.pth", "resnet18").told


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_garbage_and_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("evil.pth", "text.pth", "text.safetensors"):
        with pytest.raises(InputError, match=rf"{name} (cannot be read|is not a file of weights) \("):
            load_init(tmp_path / name, "resnet18")
    assert "executed" not in capsys.readouterr().out
    for content in ([1, 2], {}, {0: torch.ones(1)}, {"state_dict": {"conv1.weight": 1}}, torch.ones(1), None):
        torch.save(content, tmp_path / "list.pth")
        with pytest.raises(InputError, match="holds no state dict"):
            load_init(tmp_path / "list.pth", "resnet18")
    with pytest.raises(InputError, match=r"must end in \.pth, \.pt or \.safetensors"):
        write_weights(tmp_path / "a.pkl", {}, "detectron2", metadata={})
    with pytest.raises(InputError, match="no such file"):
        load_init(tmp_path / "none.pth", "resnet18")


def test_export_refuses_to_guess() -> None:
    weights = dict(backbone_of("resnet18").state_dict())
    with pytest.raises(InputError, match=r"extra\.weight: not of resnet18"):
        to_format({**weights, "extra.weight": torch.ones(1)}, "resnet18", "timm")
    del weights["layer1.0.bn1.bias"]
    with pytest.raises(InputError, match=r"layer1\.0\.bn1\.bias: missing from resnet18"):
        to_format(weights, "resnet18", "detectron2")
    with pytest.raises(InputError, match="mmseg has no vit_b_16"):
        names_in("vit_b_16", "mmseg")
    with pytest.raises(InputError, match="no format 'keras'"):
        names_in("resnet18", "keras")
    assert EXPORT_FORMATS == FORMATS


@pytest.mark.parametrize(("name", "format"), FITTING)
def test_names_are_one_to_one(name: str, format: str) -> None:
    names = names_in(name, format)
    assert len(set(names.values())) == len(names) > 100 or name == "resnet18"


def test_the_configs_of_docs_hold_the_papers_values_and_our_input() -> None:
    detectron2 = yaml.safe_load((ROOT / "docs/detectron2/mask_rcnn_R_50_FPN_1x_r2o.yaml").read_text())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert detectron2["MODEL"]["PIXEL_MEAN"] == pytest.approx([255 * m for m in mean])
    assert detectron2["MODEL"]["PIXEL_STD"] == pytest.approx([255 * s for s in std])
    assert detectron2["INPUT"]["FORMAT"] == "RGB"
    assert detectron2["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    solver = detectron2["SOLVER"]
    assert solver["MAX_ITER"] == round(12 * 118_287 / 32) == 44_358
    assert solver["STEPS"] == f"({round(solver['MAX_ITER'] * 2 / 3)}, {round(solver['MAX_ITER'] * 8 / 9)})"
    assert (solver["IMS_PER_BATCH"], solver["WEIGHT_DECAY"], solver["WARMUP_ITERS"]) == (32, 4e-5, 1000)
    mmseg = runpy.run_path(str(ROOT / "docs/mmsegmentation/fcn_r50_voc_r2o.py"))
    backbone, head = mmseg["model"]["backbone"], mmseg["model"]["decode_head"]
    assert (backbone["type"], backbone["strides"], backbone["dilations"]) == ("ResNet", (1, 2, 2, 1), (1, 1, 1, 2))
    assert (head["channels"], head["num_convs"], head["dilation"], head["num_classes"]) == (256, 2, 6, 21)
    assert mmseg["param_scheduler"][0]["milestones"] == [21_000, 27_000]
    loader = mmseg["train_dataloader"]
    assert 8 * loader["batch_size"] == 16
    assert loader["dataset"].keys() == {"datasets"}  # the base's is a ConcatDataset: it takes no pipeline of its own
    assert [one["ann_file"] for one in loader["dataset"]["datasets"]] == [
        "ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/aug.txt",
    ]  # fmt: skip
    for one in loader["dataset"]["datasets"]:
        steps = {step["type"]: step for step in one["pipeline"]}
        assert steps["RandomCrop"]["crop_size"] == (513, 513)
        assert steps["RandomResize"]["ratio_range"] == (0.5, 2.0)
    tested = mmseg["test_dataloader"]["dataset"]["pipeline"]
    assert "Resize" not in {step["type"] for step in tested}  # A.2: the original size
