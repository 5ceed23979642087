"""Generated results: of frozen features by `write_scores`, of fine-tuning by `encode_results`; a whole run of them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.artifacts.results import encode_results
from pipeline.artifacts.scores import ImageCounts, read_scores, score_of, write_scores

Write = Callable[..., ImageCounts]
RUN_FINGERPRINT = "a" * 64


def iou_counts(seed: int, *, images: int = 5, classes: int = 3) -> ImageCounts:
    rng = np.random.default_rng(seed)
    union = rng.integers(0, 50, (images, classes)) * rng.integers(0, 2, (images, classes))
    return ImageCounts("iou", np.floor(union * rng.random((images, classes))), union.astype(float))


def write_frozen(
    path: Path,
    *,
    label: str = "ours",
    weights: str | None = None,
    seed: int = 0,
    counts: ImageCounts | None = None,
    names: tuple[str, ...] | None = None,
    protocol: str = "knn",
    version: int = 1,
    headline: str = "mean_iou",
    settings: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    scores: dict[str, float | None] | None = None,
    per_class: dict[str, dict[str, float | None]] | None = None,
    backbone: str = "resnet18",
    batch_norm: str = "weights",
    fingerprint: str = "f" * 64,
    lines: dict[str, ImageCounts] | None = None,
) -> ImageCounts:
    """One result of frozen features in a folder that is made; gives its counts. `lines`: further scores by image."""
    found = counts or iou_counts(seed)
    path.mkdir(parents=True)
    sha256 = None if label.startswith("random") else hashlib.sha256((weights or label).encode()).hexdigest()
    members = {
        "fingerprint": fingerprint,
        "protocol": {
            "id": f"r2o.{protocol}/{version}",
            "name": protocol,
            "headline": headline,
            "settings": {"size": 224, "seeds": [seed], **(settings or {})},
        },
        "weights": {
            "label": label, "backbone": backbone, "format": "auto", "sha256": sha256,
            "batch_norm": batch_norm, "loaded": 0.0 if sha256 is None else 1.0,
        },
        "data": {
            "name": "small", "layout": "voc", "fingerprint": "d" * 64,
            "images": {"train": 9, "val": len(found.value)}, "notes": (), **(data or {}),
        },
        "seed": seed,
        "scores": {headline: score_of(found), **{n: score_of(c) for n, c in (lines or {}).items()}, **(scores or {})},
        "per_class": per_class or {},
        "chosen": {},
        "seconds": {},
        "versions": {},
    }  # fmt: skip
    images = names or tuple(f"image {number}" for number in range(len(found.value)))
    write_scores(path, members, names=images, counts={headline: found, **(lines or {})})
    return found


def write_fine_tuned(path: Path, by_init: dict[str, dict[int, float | None]], **members: Any) -> Path:
    """Results of eval-voc, `{init: {seed: mIoU}}`; gives their path."""
    summaries = {
        init: {
            "seeds": {
                str(seed): {"mean_iou": value, "pixel_accuracy": 0.5, "iou": {"cat": value, "dog": None}}
                for seed, value in by_seed.items()
            }
        }
        for init, by_seed in by_init.items()
    }
    path.parent.mkdir(parents=True)
    whole = {
        "format_version": 2,
        "fingerprint": "e" * 64,
        "protocol": {"iterations": 30, "seeds": [0], "num_workers": 4},
        "backbone": {"name": "resnet18", "run_fingerprint": "a" * 64},
        "train_images": 12,
        "val_images": 6,
        "versions": {},
        "inits": summaries,
        **members,
    }
    path.write_text(encode_results(whole))
    return path


def write_run(
    run: Path,
    linear: Mapping[str, Sequence[ImageCounts]],
    *,
    abo: Mapping[str, ImageCounts] | None = None,
    references: Mapping[str, ImageCounts] | None = None,
    fine_tuned: Mapping[str, float] | None = None,
    first_seed: int = 0,
) -> list[Path]:
    """A run whose weights are called by the name of its folder, and its evaluations. Gives their last files.

    Args:
        linear: by weights, the counts of each seed; abo, fine_tuned: of one seed.
        references: of ABO, the same for all weights.
    """
    from train.evals.frozen.scoring.summary import SummaryRow, write_summary  # here, for it loads torch

    run.mkdir(parents=True)
    (run / "backbone.pt").write_text(run.name)
    (run / "run.json").write_text(json.dumps({"fingerprint": RUN_FINGERPRINT}))
    markers, rows = [], []
    if fine_tuned:
        of_seed = {init: {first_seed: value} for init, value in fine_tuned.items()}
        protocol = {"iterations": 300, "batch_size": 8}
        markers.append(write_fine_tuned(run / "eval-voc" / "results.json", of_seed, protocol=protocol))
    out = run / "eval-frozen"
    kinds = {"linear": ("mean_iou", linear), "abo": ("over_objects", {n: [c] for n, c in (abo or {}).items()})}
    for protocol, (headline, by_label) in kinds.items():
        stored: dict[str, list[Any]] = {}
        for label, seeds in by_label.items():
            for seed, counts in enumerate(seeds, start=first_seed):
                folder = out / "small" / label / protocol / f"seed{seed}"
                write_frozen(
                    folder, label=label, seed=seed, counts=counts, protocol=protocol, headline=headline,
                    batch_norm={"random": "initial", "random-bn": "data"}.get(label, "weights"),
                    fingerprint=hashlib.sha256(str(folder.relative_to(run)).encode()).hexdigest(),
                    settings={"clusters": 4} if protocol == "abo" else None,
                    lines=dict(references or {}) if protocol == "abo" else None,
                )  # fmt: skip
                stored.setdefault(label, []).append(read_scores(folder))
        if stored:
            rows.append(SummaryRow("small", protocol, headline, stored))
    if rows:
        markers.append(write_summary(SimpleNamespace(out=out), rows))  # type: ignore[arg-type]
    return markers
