"""Every operator against torchvision's (PIL's for solarize), one image at a time."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from tests.train.launches import DEVICE, launches
from train.config.data import AugmentSettings
from train.data.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentParams,
    _augmented,
    _augmented_together,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    augment_on_host,
    augment_views,
    draw_params,
    gaussian_blur,
    normalize,
)

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.rand(12, 3, 24, 24, generator=GENERATOR)
IMAGES[0, :, :5] = 0.5  # grey pixels, whose hue is undefined
IMAGES[1, :, :5] = 0.0
IMAGES[2, :, :5] = 1.0


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (adjust_brightness, v2.functional.adjust_brightness, 0.6, 1.4),
        (adjust_contrast, v2.functional.adjust_contrast, 0.6, 1.4),
        (adjust_saturation, v2.functional.adjust_saturation, 0.8, 1.2),
        (adjust_hue, v2.functional.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour_operators_equal_torchvisions(ours, theirs, low, high) -> None:
    factors = torch.rand(12, generator=GENERATOR) * (high - low) + low
    expected = torch.stack([theirs(image, factor.item()) for image, factor in zip(IMAGES, factors, strict=True)])
    torch.testing.assert_close(ours(IMAGES, factors.view(-1, 1, 1, 1)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 9, 23])
def test_blur_equals_torchvisions(kernel_size: int) -> None:
    sigmas = torch.rand(12, generator=GENERATOR) * 1.9 + 0.1
    expected = torch.stack(
        [v2.functional.gaussian_blur(image, kernel_size, s.item()) for image, s in zip(IMAGES, sigmas, strict=True)]
    )
    torch.testing.assert_close(gaussian_blur(IMAGES, sigmas, kernel_size), expected, atol=1e-5, rtol=1e-5)
    one_by_one = [gaussian_blur(IMAGES[i : i + 1], sigmas[i : i + 1], kernel_size) for i in range(12)]
    torch.testing.assert_close(torch.cat(one_by_one), expected, atol=1e-5, rtol=1e-5)


def test_a_kernel_wider_than_the_view_is_refused() -> None:
    with pytest.raises(ValueError, match="blur_kernel_size 49"):
        gaussian_blur(IMAGES, torch.ones(12), 49)


def identity(count: int) -> dict[str, np.ndarray]:
    return {
        "factors": np.tile(np.array([1, 1, 1, 0], dtype=np.float32), (count, 1)),
        "order": np.tile(np.arange(4), (count, 1)),
        "jitter": np.zeros(count, dtype=bool),
        "grayscale": np.zeros(count, dtype=bool),
        "blur_sigma": np.zeros(count, dtype=np.float32),
        "solarize": np.zeros(count, dtype=bool),
    }


def undone(normalized: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return normalized * std + mean


def test_solarize_equals_pils() -> None:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=GENERATOR)
    params = AugmentParams(**{**identity(4), "solarize": np.array([True, False, True, True])})
    ours = (undone(augment_views(pixels, params, AugmentSettings())) * 255).round().to(torch.uint8)
    for i in range(4):
        image = Image.fromarray(pixels[i].permute(1, 2, 0).numpy())
        expected = np.asarray(ImageOps.solarize(image, threshold=128) if params.solarize[i] else image)
        assert np.array_equal(ours[i].permute(1, 2, 0).numpy(), expected)


def test_the_jitter_s_order_is_each_image_s_own_and_the_rest_follows_it() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_params(rng, AugmentSettings()) for _ in range(20)]
    params = AugmentParams(*(np.concatenate(field) for field in zip(*drawn, strict=True)))
    pixels = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=GENERATOR)
    operators = [v2.functional.adjust_brightness, v2.functional.adjust_contrast,
                 v2.functional.adjust_saturation, v2.functional.adjust_hue]  # fmt: skip
    ours = augment_views(pixels, params, AugmentSettings())
    for i in range(40):
        image = pixels[i].float() / 255
        if params.jitter[i]:
            for operation in params.order[i]:
                image = operators[operation](image, float(params.factors[i, operation]))
        if params.grayscale[i]:
            image = v2.functional.rgb_to_grayscale(image, 3)
        if params.blur_sigma[i] > 0:
            image = v2.functional.gaussian_blur(image, 23, float(params.blur_sigma[i]))
        if params.solarize[i]:
            image = v2.functional.solarize(image, 128 / 255)
        expected = v2.functional.normalize(image, list(IMAGENET_MEAN), list(IMAGENET_STD))
        # a pixel within rounding of the solarize threshold may fall on either side
        assert ((ours[i] - expected).abs() > 1e-3).float().mean() < 1e-3


def test_probabilities_are_the_paper_s() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw_params(rng, AugmentSettings()) for _ in range(4000)]
    rates = {
        "jitter": (0.8, 0.8), "grayscale": (0.2, 0.2), "solarize": (0.0, 0.2),
    }  # fmt: skip
    for name, expected in rates.items():
        np.testing.assert_allclose(np.mean([getattr(d, name) for d in drawn], 0), expected, atol=0.03)
    np.testing.assert_allclose(np.mean([d.blur_sigma > 0 for d in drawn], 0), (1.0, 0.1), atol=0.03)
    factors = np.stack([d.factors for d in drawn])
    np.testing.assert_allclose(factors.min((0, 1)), (0.6, 0.6, 0.8, -0.1), atol=0.01)
    np.testing.assert_allclose(factors.max((0, 1)), (1.4, 1.4, 1.2, 0.1), atol=0.01)
    sigma = np.array([d.blur_sigma[0] for d in drawn])
    np.testing.assert_allclose((sigma.min(), sigma.max(), sigma.mean()), (0.1, 2.0, 1.05), atol=0.03)


def test_normalize_equals_torchvisions() -> None:
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=GENERATOR)
    expected = v2.functional.normalize(pixels.float() / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(normalize(pixels), expected)


def drawn_for(count: int) -> AugmentParams:
    rng = np.random.default_rng(7)
    params = [draw_params(rng, AugmentSettings()) for _ in range(count // 2)]
    return AugmentParams(*(np.concatenate(field) for field in zip(*params, strict=True)))


@pytest.mark.parametrize("size", [(32, 32), (40, 28)])
def test_the_host_s_pixels_are_the_device_s_rounded(size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (24, 3, *size), dtype=torch.uint8, generator=GENERATOR)
    params = drawn_for(24)
    ours = augment_on_host(pixels, params, AugmentSettings())
    exact = undone(augment_views(pixels, params, AugmentSettings()))
    assert (ours.float() / 255 - exact).abs().max() <= 0.5 / 255 + 1e-5


def test_neither_layout_nor_company_changes_a_view() -> None:
    pixels = torch.randint(0, 256, (12, 3, 24, 24), dtype=torch.uint8, generator=GENERATOR)
    params = drawn_for(12)
    together = augment_views(pixels, params, AugmentSettings())
    nhwc = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(together, augment_views(nhwc, params, AugmentSettings()))
    for i in range(12):
        one = AugmentParams(*(field[i : i + 1] for field in params))
        assert torch.equal(together[i : i + 1], augment_views(pixels[i : i + 1], one, AugmentSettings()))


def by_all_orders(count: int) -> AugmentParams:
    """Every one of the 24 orders, images without jitter between them, and factors that clamp."""
    rng = np.random.default_rng(11)
    orders = np.array(list(itertools.permutations(range(4))))[np.arange(count) % 24]
    jitter = np.arange(count) % 5 != 3
    factors = rng.uniform((0.3, 0.3, 0.3, -0.5), (1.9, 1.9, 1.9, 0.5), (count, 4)).astype(np.float32)
    return AugmentParams(**{**identity(count), "order": orders, "jitter": jitter, "factors": factors})


def test_the_whole_batch_s_jitter_equals_that_of_one_operator_after_the_other() -> None:
    pixels = torch.randint(0, 256, (48, 3, 24, 20), dtype=torch.uint8, generator=GENERATOR)
    pixels[:, :, :3] = pixels[:, :1, :3]  # grey
    pixels[:, :, 3:5] = torch.tensor([255, 0, 0, 255, 0, 255], dtype=torch.uint8).view(1, 3, 2, 1)  # two colours alike
    pixels[::2, :, 5] = 0
    nhwc = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as batches come from the host
    params = by_all_orders(48)
    expected = _augmented(pixels, params, AugmentSettings())
    for given in (pixels, nhwc):
        found = undone(_augmented_together(given, params, AugmentSettings(), torch.float32))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.is_contiguous()
    assert (expected - pixels / 255).abs().mean() > 0.2  # the factors are no identities


@pytest.mark.parametrize("jitter", [True, False])
def test_a_batch_that_all_or_nobody_jitters(jitter: bool) -> None:
    pixels = torch.randint(0, 256, (7, 3, 12, 12), dtype=torch.uint8, generator=GENERATOR)
    params = by_all_orders(7)._replace(jitter=np.full(7, jitter))
    found = undone(_augmented_together(pixels, params, AugmentSettings(), torch.float32))
    torch.testing.assert_close(found, _augmented(pixels, params, AugmentSettings()), atol=1e-5, rtol=0)


def test_the_batched_path_of_a_gpu_equals_the_view_by_view_path_of_a_cpu() -> None:
    pixels = torch.randint(0, 256, (40, 3, 24, 24), dtype=torch.uint8, generator=GENERATOR)
    params = drawn_for(40)
    expected = augment_views(pixels, params, AugmentSettings())
    for batched in (
        normalize(_augmented(pixels, params, AugmentSettings())),
        _augmented_together(pixels, params, AugmentSettings(), torch.float32),
    ):
        # a pixel within rounding of the solarize threshold may fall on either side
        assert ((batched - expected).abs() > 1e-5 / 0.22).sum() <= 3 * 2
    rounded = _augmented_together(pixels, params, AugmentSettings(), torch.bfloat16)
    assert torch.equal(rounded, batched.bfloat16())


@pytest.mark.long
def test_a_gpu_augments_a_batch_by_few_kernels() -> None:
    """300 where every operator gathered the images that it was for, of whatever batch."""
    views = torch.empty(64, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    with launches() as counted:
        found = augment_views(views, drawn_for(64), AugmentSettings(), dtype=torch.bfloat16)
    assert (found.device, found.dtype) == (DEVICE, torch.bfloat16)
    assert counted.kernels.total() <= 121
    assert counted.waits == []


def test_bfloat16_is_the_float32_result_rounded() -> None:
    pixels = torch.randint(0, 256, (12, 3, 24, 24), dtype=torch.uint8, generator=GENERATOR)
    exact = augment_views(pixels, drawn_for(12), AugmentSettings())
    assert torch.equal(augment_views(pixels, drawn_for(12), AugmentSettings(), dtype=torch.bfloat16), exact.bfloat16())
