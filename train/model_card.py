"""The text beside exported weights: what they are, where they come from, what they scored, how to load them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.run_folder import CONFIG_NAME, RECORD_NAME
from train.run_log import read_log

SHOWN = ("loss", "num_clusters", "prediction_std", "projection_std", "valid_fraction")
TIMM_NAMES = {"vit_s_16": "vit_small_patch16_224", "vit_b_16": "vit_base_patch16_224"}
LOADING = {
    "torchvision": """import torchvision
model = torchvision.models.get_model("{name}")
missing, unexpected = model.load_state_dict(weights, strict=False)
assert not unexpected and all(key.startswith(("fc.", "heads.")) for key in missing)""",
    "timm": """import timm
model = timm.create_model("{timm_name}", num_classes=0{options})
model.load_state_dict(weights)""",
    "detectron2": """# docs/detectron2/mask_rcnn_R_50_FPN_1x_r2o.yaml, or any config of a ResNet, with
#   MODEL.WEIGHTS {path}
# its checkpointer matches `res2.0.conv1.weight` to `backbone.bottom_up.res2.0.conv1.weight`""",
    "mmseg": """# docs/mmsegmentation/fcn_r50_voc_r2o.py, or in any config of a ResNet
#   model = dict(backbone=dict(init_cfg=dict(type="Pretrained", checkpoint="{path}")))""",
}
READING = {
    ".safetensors": 'from safetensors.torch import load_file\nweights = load_file("{path}")',
    ".pth": 'import torch\nweights = torch.load("{path}", weights_only=True)',
}


Normalization = Mapping[str, tuple[float, ...]]  # mean and std


def model_card(
    run: Path, *, weights: Path, name: str, format: str, step: int | None, normalization: Normalization
) -> str:
    """Markdown, in the form that model hubs read.

    Args:
        weights: the file that it stands beside.
        step: after which the weights were taken; None for the end of the run.
    """
    record = json.loads((run / RECORD_NAME).read_bytes())
    when = "the end of the run" if step is None else f"step {step}"
    library = format if format in ("timm", "torchvision") else "pytorch"
    method = "[Gokul et al. 2022](https://arxiv.org/abs/2208.11821)"
    parts = [
        f"---\nlibrary_name: {library}\ntags: [self-supervised, segmentation, detection, r2o]\n---",
        f"# {run.name}: {name}, pretrained by Region-to-Object representation learning",
        f"The online backbone at {when}, under the names of {format}, without a classifier. Method: {method}.",
        "Input: RGB in [0, 1], minus mean {mean}, divided by std {std}.".format(**normalization),
        f"## Loading\n\n```python\n{_loading(weights, name, format)}\n```",
        f"## Figures\n\n{_figures(run)}",
        f"## Origin\n\n{_origin(record)}",
        f"## Settings\n\n```yaml\n{(run / CONFIG_NAME).read_text(encoding='utf-8').rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(weights: Path, name: str, format: str) -> str:
    options = "" if name.startswith("resnet") else ', global_pool="avg"'
    filled = LOADING[format].format(name=name, timm_name=TIMM_NAMES.get(name, name), path=weights.name, options=options)
    if name == "vit_s_16" and format == "torchvision":
        filled = filled.replace(
            'torchvision.models.get_model("vit_s_16")',
            "torchvision.models.VisionTransformer(224, 16, 12, 6, 384, 1536)",
        )
    if format in ("detectron2", "mmseg"):
        return filled
    reading = READING[".safetensors" if weights.suffix == ".safetensors" else ".pth"]
    return f"{reading.format(path=weights.name)}\n{filled}"


def _figures(run: Path) -> str:
    log, lines = read_log(run), []
    if log:
        told = ", ".join(f"{figure} {log[-1][figure]:.4g}" for figure in SHOWN)
        lines.append(f"Last step of the log, {log[-1]['step']:.0f}: {told}.")
    for figure in ("knn_top1", "abo"):
        if probes := read_log(run, figure=figure):
            lines.append(f"Last probe, {figure}: {probes[-1][figure]:.4f} at step {probes[-1]['step']:.0f}.")
    results = run / "eval-voc" / "results.json"
    if results.exists():
        lines += [_voc_line(init, one) for init, one in json.loads(results.read_bytes())["inits"].items()]
    return "\n".join(lines) or "None yet."


def _voc_line(init: str, summary: Mapping[str, Any]) -> str:
    score = summary["mean_iou"]
    spread = "" if score["std"] is None else f" ± {score['std']:.4f}"
    return f"VOC, fine-tuned FCN from {init}: mIoU {score['mean']:.4f}{spread} over {score['n']} seeds."


def _origin(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{library} {version}" for library, version in record["versions"].items())
    rows = {
        "run": record["fingerprint"],
        "shards": f"{record['shards_fingerprint']}, {record['samples']} images",
        "seed": record["seed"],
        "r2o commit": record["git_commit"] or "not in a checkout",
        "versions": versions,
        "starts": len(record["starts"]),
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items())
