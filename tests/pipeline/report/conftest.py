"""Generated results: of frozen features by `write_scores`, of fine-tuning by `encode_results`."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.artifacts.results import encode_results
from pipeline.artifacts.scores import ImageCounts, score_of, write_scores

Write = Callable[..., ImageCounts]


def iou_counts(seed: int, *, images: int = 5, classes: int = 3) -> ImageCounts:
    rng = np.random.default_rng(seed)
    union = rng.integers(0, 50, (images, classes)) * rng.integers(0, 2, (images, classes))
    return ImageCounts("iou", np.floor(union * rng.random((images, classes))), union.astype(float))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(folder, …)`: one result below tmp_path. Gives its counts."""

    def one(
        folder: str,
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
    ) -> ImageCounts:
        found = counts or iou_counts(seed)
        path = tmp_path / folder
        path.mkdir(parents=True)
        sha256 = None if label.startswith("random") else hashlib.sha256((weights or label).encode()).hexdigest()
        members = {
            "fingerprint": "f" * 64,
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
            "scores": {headline: score_of(found), **(scores or {})},
            "per_class": per_class or {},
            "chosen": {},
            "seconds": {},
            "versions": {},
        }  # fmt: skip
        images = names or tuple(f"image {number}" for number in range(len(found.value)))
        write_scores(path, members, names=images, counts={headline: found})
        return found

    return one


@pytest.fixture
def write_fine_tuning(tmp_path: Path) -> Callable[..., Path]:
    """`write_fine_tuning(folder, {init: {seed: mIoU}})`: results of eval-voc below tmp_path. Gives their path."""

    def one(folder: str, by_init: dict[str, dict[int, float | None]], **members: Any) -> Path:
        summaries = {
            init: {
                "seeds": {
                    str(seed): {"mean_iou": value, "pixel_accuracy": 0.5, "iou": {"cat": value, "dog": None}}
                    for seed, value in by_seed.items()
                }
            }
            for init, by_seed in by_init.items()
        }
        path = tmp_path / folder / "results.json"
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

    return one
