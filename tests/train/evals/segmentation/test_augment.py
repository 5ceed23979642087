"""Crops: image and labels stay together, padding is void, colours stay in their ranges."""

import colorsys
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from train.config.evals import EvalVocSettings
from train.evals.segmentation.augment import (
    LabelledImage,
    Window,
    crop_image,
    crop_labels,
    distort_colours,
    draw_window,
    largest_class_share,
    random_crop,
    scaled_size,
    to_example,
)

PALETTE = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30], [30, 30, 200], [220, 220, 20]], dtype=np.uint8)


def blocks(height: int, width: int, *, seed: int = 0, cells: int = 4) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 5, (cells, cells)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST))


@pytest.mark.parametrize("seed", range(12))
def test_an_image_painted_from_its_mask_is_cropped_with_it(seed: int) -> None:
    labels = blocks(90, 120, seed=seed)
    settings = EvalVocSettings(crop_size=64, short_side=None if seed % 2 else 70, flip_probability=0.5)
    image, cropped = random_crop(
        LabelledImage(PALETTE[labels], labels), settings=settings, rng=np.random.default_rng(seed)
    )
    assert image.shape[:2] == cropped.shape
    inner = maximum_filter(cropped, 9) == minimum_filter(cropped, 9)  # away from borders, where colours mix
    assert inner.mean() > 0.1
    np.testing.assert_array_equal(image[inner], PALETTE[cropped[inner]])
    nearest = np.abs(image[..., None, :].astype(int) - PALETTE).sum(-1).argmin(-1)
    assert (nearest == cropped).mean() > 0.85  # no shift: borders agree to about a pixel


def test_cropping_equals_scaling_everything_and_cutting() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    labels = blocks(50, 70)
    for height, width in ((75, 105), (33, 46), (50, 70)):
        window = Window(height, width, top=5, left=9, height=24, width=30)
        whole = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        difference = crop_image(image, window).astype(int) - whole[5:29, 9:39]
        assert np.abs(difference).max() <= 1
        rows = [math.floor(Fraction(2 * y + 1, 2) * 50 / height) for y in range(5, 29)]
        columns = [math.floor(Fraction(2 * x + 1, 2) * 70 / width) for x in range(9, 39)]
        np.testing.assert_array_equal(crop_labels(labels, window), labels[np.ix_(rows, columns)])


def test_flip_mirrors_both() -> None:
    labels = blocks(40, 40)
    sample = LabelledImage(PALETTE[labels], labels)
    straight = EvalVocSettings(crop_size=40, scale_range=(1, 1), flip_probability=0)
    crop = random_crop(sample, settings=straight, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(crop.labels, labels)
    np.testing.assert_array_equal(crop.image, sample.image)
    flipped = random_crop(
        sample, settings=straight.model_copy(update={"flip_probability": 1.0}), rng=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(flipped.labels, labels[:, ::-1])
    np.testing.assert_array_equal(flipped.image, sample.image[:, ::-1])


def test_padding_is_the_mean_colour_and_void() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    image = np.full((3, 5, 3), 255, dtype=np.uint8)
    example = to_example(LabelledImage(image, np.ones((3, 5), np.uint8)), mean=mean, std=std, size=8)
    assert example.image.dtype == torch.float32
    torch.testing.assert_close(example.image[:, :3, :5].amax((1, 2)), torch.tensor([3.0, 2.0, 0.8]))
    assert (example.image[:, 3:] == 0).all()
    assert (example.image[:, :, 5:] == 0).all()
    assert (example.labels[:3, :5] == 1).all()
    assert (example.labels == 255).sum() == 64 - 15


def test_scaled_size() -> None:
    assert scaled_size(375, 500, short_side=None) == (375, 500)
    assert scaled_size(375, 500, short_side=150) == (150, 200)
    assert scaled_size(500, 375, short_side=150, ratio=2.0) == (400, 300)
    assert scaled_size(3, 400, short_side=None, ratio=0.1) == (1, 40)


def test_scale_is_uniform_in_its_range_and_windows_lie_inside() -> None:
    settings, rng = EvalVocSettings(crop_size=50), np.random.default_rng(0)
    labels = blocks(80, 100)
    windows = [draw_window(labels, settings=settings, rng=rng) for _ in range(400)]
    ratios = np.array([w.scaled_height / 80 for w in windows])
    assert ratios.min() >= 0.49
    assert ratios.max() <= 2.01
    assert ratios.mean() == pytest.approx(1.25, abs=0.07)
    for w in windows:
        assert (w.height, w.width) == (min(50, w.scaled_height), min(50, w.scaled_width))
        assert 0 <= w.top <= w.scaled_height - w.height
        assert 0 <= w.left <= w.scaled_width - w.width


def test_a_crop_of_one_class_is_drawn_again() -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:, 50:] = 1
    settings = EvalVocSettings(crop_size=30, scale_range=(1, 1))

    def mixed(share: float) -> int:
        limited = settings.model_copy(update={"max_class_share": share})
        crops = [
            random_crop(LabelledImage(PALETTE[labels], labels), settings=limited, rng=np.random.default_rng(s))
            for s in range(60)
        ]
        return sum(largest_class_share(c.labels) < 0.75 for c in crops)

    assert mixed(0.75) > 45  # P(one draw) = 15/71; of ten, 91 %
    assert mixed(1.0) < 25
    assert largest_class_share(np.array([[255, 255], [1, 2]], dtype=np.uint8)) == 0.5
    assert largest_class_share(np.full((2, 2), 255, dtype=np.uint8)) == 1


def test_distortion_is_deterministic_bounded_and_keeps_grey_grey() -> None:
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    means = []
    for seed in range(200):
        out = distort_colours(grey, np.random.default_rng(seed))
        np.testing.assert_array_equal(out, distort_colours(grey, np.random.default_rng(seed)))
        assert np.ptp(out) == 0
        means.append(int(out[0, 0, 0]))
    assert min(means) >= (128 - 33) * 0.5 - 1
    assert max(means) <= (128 + 32) * 1.5
    assert 0.15 < np.mean([m == 128 for m in means]) < 0.35  # neither brightness nor contrast: a quarter
    assert (grey == 128).all()


def test_hue_moves_by_at_most_36_degrees() -> None:
    red = np.broadcast_to(np.array([200, 60, 60], np.uint8), (2, 2, 3))
    hues = []
    for seed in range(200):
        r, g, b = (distort_colours(red, np.random.default_rng(seed))[0, 0] / 255).tolist()
        hue, saturation, _ = colorsys.rgb_to_hsv(r, g, b)
        if saturation > 0.2:
            hues.append((hue * 360 + 180) % 360 - 180)
    assert max(np.abs(hues)) <= 36 + 4  # 8-bit hue and saturation
    assert max(hues) > 20
    assert min(hues) < -20
