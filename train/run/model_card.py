"""The text beside exported weights: what they are, where they come from, what they scored, how to load them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts.results import Results, Spread
from pipeline.artifacts.run_files import RESULTS_NAME, evaluation_folder
from pipeline.foundation.files import refuse_link
from train.models.backbone import VIT_SIZES
from train.run.folder import run_config
from train.run.frozen_scores import frozen_lines
from train.run.log import GROUPS, read_log

SHOWN = ("loss", "num_clusters", "prediction_std", "projection_std", "valid_fraction")
TIMM_NAMES = {"vit_s_16": "vit_small_patch16_224", "vit_b_16": "vit_base_patch16_224"}
LEFT_OUT = {  # what a library's model does not have
    "vit": "Left out: `c4_layer` and `c5_layer`, R2O's own layers over the tokens of the last block.",
    "detectron2": "Left out: the counters `num_batches_tracked`, which its FrozenBN does not have.",
}
TORCHVISION_RESNET = """import torchvision
model = torchvision.models.{name}()
model.fc = torch.nn.Identity()
model.load_state_dict(weights)"""
TORCHVISION_VIT = """import torchvision
model = torchvision.models.VisionTransformer({image_size}, 16, 12, {heads}, {width}, {mlp})
model.heads = torch.nn.Identity()
model.load_state_dict(weights)"""
TIMM = """import timm
model = timm.create_model("{timm_name}", num_classes=0{options})
model.load_state_dict(weights)"""
DETECTRON2 = """from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
# or docs/detectron2/mask_rcnn_R_50_FPN_1x_r2o.yaml
cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = {depth}, {res2_channels}
cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", {pixel_mean}, {pixel_std}
model = build_model(cfg)"""
MMSEG = """from mmseg.models.backbones import ResNet
# or docs/mmsegmentation/fcn_r50_voc_r2o.py"""
BY_ITSELF = {  # libraries that read a .pth themselves
    "detectron2": f"""{DETECTRON2}
DetectionCheckpointer(model).load("{{path}}")""",
    "mmseg": f"""{MMSEG}
model = ResNet(depth={{depth}}, init_cfg=dict(type="Pretrained", checkpoint="{{path}}"))
model.init_weights()""",
}
GIVEN_WEIGHTS = {
    "timm": TIMM,
    "detectron2": f"""{DETECTRON2}
model.backbone.bottom_up.load_state_dict(weights)""",
    "mmseg": f"""{MMSEG}
model = ResNet(depth={{depth}})
model.load_state_dict(weights)""",
}
READING = {
    ".safetensors": 'import torch\nfrom safetensors.torch import load_file\nweights = load_file("{path}")',
    ".pth": 'import torch\nweights = torch.load("{path}", weights_only=True)',
}
MARK = "<!-- Written by r2o export. SHA-256 of the text above: "  # last, where no reader of Markdown shows it
STARTED_0_1_0 = "---\nlibrary_name: "
HELD_0_1_0 = (
    "pretrained by Region-to-Object representation learning\n",
    "\n## Loading\n",
    "\n## Figures\n",
    "\n## Origin\n",
    "\n## Settings\n",
)

Normalization = Mapping[str, tuple[float, ...]]  # mean and std


def model_card(
    run: Path,
    record: Mapping[str, Any],
    *,
    weights: Path,
    name: str,
    format: str,
    step: int | None,
    image_size: int,
    normalization: Normalization,
) -> str:
    """Markdown, in the form that model hubs read.

    Args:
        record: the run's run.json.
        weights: the file that it stands beside.
        step: after which the weights were taken; None for the end of the run.
        image_size: that a ViT's position embedding is for, in pixels.
    """
    when = "the end of the run" if step is None else f"step {step}"
    library = format if format in ("timm", "torchvision") else "pytorch"
    method = "[Gokul et al. 2022](https://arxiv.org/abs/2208.11821)"
    left_out = LEFT_OUT.get("vit" if name.startswith("vit") else format, "")
    loading = _loading(weights, name, format, image_size=image_size, normalization=normalization)
    what = f"The online backbone at {when}, under the names of {format}, without a classifier."
    parts = [
        f"---\nlibrary_name: {library}\ntags: [self-supervised, segmentation, detection, r2o]\n---",
        f"# {run.name}: {name}, pretrained by Region-to-Object representation learning",
        f"{what} Method: {method}. {left_out}",
        "Input: RGB in [0, 1], minus mean {mean}, divided by std {std}.".format(**normalization),
        "License: for who publishes the weights to choose; that of the training images may bind it.",
        f"## Loading\n\n```python\n{loading}\n```",
        f"## Figures\n\n{_figures(run, step, fingerprint=record['fingerprint'])}",
        f"## Origin\n\n{_origin(record)}",
        f"## Settings\n\n```yaml\n{run_config(run).rstrip()}\n```",
    ]
    return _marked("\n\n".join(part.rstrip() for part in parts) + "\n\n")


def _marked(text: str) -> str:
    return f"{text}{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_model_card(content: bytes) -> bool:
    """Whether this is what `model_card` once wrote, and nobody has edited since. Cards of 0.1.0 have no mark."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    above, mark, _ = text.partition(MARK)
    if mark:
        return text == _marked(above)
    return text.startswith(STARTED_0_1_0) and all(part in text for part in HELD_0_1_0)


def _loading(weights: Path, name: str, format: str, *, image_size: int, normalization: Normalization) -> str:
    """Python that makes `model`, the library's with these weights; run beside the file."""
    suffix = ".safetensors" if weights.suffix == ".safetensors" else ".pth"
    is_vit = name in VIT_SIZES
    width, heads = VIT_SIZES.get(name, (0, 0))
    torchvision = TORCHVISION_VIT if is_vit else TORCHVISION_RESNET
    own = BY_ITSELF.get(format) if suffix == ".pth" else None
    text = own or f"{READING[suffix]}\n{GIVEN_WEIGHTS.get(format, torchvision)}"
    return text.format(
        name=name,
        timm_name=TIMM_NAMES.get(name, name),
        options=f", img_size={image_size}" if is_vit else "",
        path=weights.name,
        depth=name.removeprefix("resnet"),
        res2_channels=64 if name in ("resnet18", "resnet34") else 256,
        image_size=image_size,
        heads=heads,
        width=width,
        mlp=4 * width,
        **{f"pixel_{which}": [round(255 * value, 4) for value in values] for which, values in normalization.items()},
    )


def _figures(run: Path, step: int | None, *, fingerprint: str) -> str:
    """What the run told of these very weights: nothing of later steps, nor what the finished backbone scored."""
    log, lines = _until(read_log(run), step), []
    if log:
        told = ", ".join(f"{figure} {log[-1][figure]:.4g}" for figure in SHOWN if figure in log[-1])
        lines.append(f"Last step of the log, {log[-1]['step']:.0f}: {told}.")
    for figure in GROUPS["probe"]:
        if probes := _until(read_log(run, figure=figure), step):
            lines.append(f"Last probe, {figure}: {probes[-1][figure]:.4f} at step {probes[-1]['step']:.0f}.")
    refuse_link(run / evaluation_folder("voc"))
    results = Results.read(run / evaluation_folder("voc") / RESULTS_NAME)
    if step is None and results is not None and results.backbone.run_fingerprint == fingerprint:
        lines += [_voc_line(init, results.spread(init, "mean_iou")) for init in results.inits]
    if step is None:
        lines += frozen_lines(run)
    return "\n".join(lines) or "None yet."


def _until(log: list[dict[str, float]], step: int | None) -> list[dict[str, float]]:
    """The records of the first `step` steps."""
    return [line for line in log if step is None or line["step"] < step]


def _voc_line(init: str, score: Spread) -> str:
    spread = "" if score.std is None else f" ± {score.std:.4f}"
    return f"VOC, fine-tuned FCN from {init}: mIoU {score.mean:.4f}{spread} over {score.n} seeds."


def _origin(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    rows = {
        "run": record["fingerprint"],
        "shards": f"{record['shards_fingerprint']}, {record['samples']} images",
        "seed": record["seed"],
        "began with": f"weights of SHA-256 {record['init']['sha256']}" if record["init"] else "random weights",
        "r2o commit": record["git_commit"] or "not in a checkout",
        "versions": versions,
        "starts": len(record["starts"]),
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())
