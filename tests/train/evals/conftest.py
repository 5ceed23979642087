"""Tiny folders of VOC2012's layout: coloured squares on grey, with their masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.models.backbone import build_backbone
from train.models.backbone_file import save_backbone

COLOURS = np.array([[110, 110, 110], [220, 40, 40], [40, 60, 220]], dtype=np.uint8)


def write_voc(root: Path, *, train: int = 12, val: int = 6, seed: int = 0) -> Path:
    """Three classes (classes.txt); sizes differ; a void frame of one pixel around each square. Returns VOC2012."""
    rng = np.random.default_rng(seed)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("background\nred\nblue\n")
    for name, first, count in (("train", 0, train), ("val", train, val)):
        names = [f"{i:03d}" for i in range(first, first + count)]
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(names) + "\n")
        for i, image_name in enumerate(names):
            height, width = (int(v) for v in rng.integers(60, 80, 2))
            labels = np.zeros((height, width), dtype=np.uint8)
            top, left, size = (int(v) for v in rng.integers((2, 2, 26), (20, 20, 38)))
            labels[top - 1 : top + size + 1, left - 1 : left + size + 1] = 255
            labels[top : top + size, left : left + size] = 1 + i % 2
            pixels = COLOURS[np.where(labels == 255, 0, labels)] + rng.integers(
                0, 20, (height, width, 1), dtype=np.uint8
            )
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_name}.jpg", quality=95, subsampling=0)
            Image.fromarray(labels).save(root / "SegmentationClass" / f"{image_name}.png")
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "VOCdevkit" / "VOC2012")


@pytest.fixture
def run_folder(tmp_path: Path, shallow: None) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    save_backbone(folder / "backbone.pt", build_backbone("resnet18", seed=3), name="resnet18", fingerprint="abc")
    return folder
