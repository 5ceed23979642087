"""Masks, pooling, K-means and loss are float32 while networks compute in half precision."""

from unittest.mock import patch

import pytest
import torch

from tests.train.r2o.test_model import batch_of, seeds, small_model
from train.config.pretrain import RefineSettings
from train.engine.build import refinement_of
from train.r2o import model as model_module
from train.r2o.loss import byol_loss, contrastive_loss_sum
from train.r2o.masks import align_label_map, mask_pool
from train.r2o.refine import refine

pytestmark = pytest.mark.usefixtures("shallow")


def in_autocast(function, *arguments, **named):  # type: ignore[no-untyped-def]
    with torch.autocast("cpu", torch.bfloat16):
        return function(*arguments, **named)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_aligned_masks_are_the_same_to_the_bit() -> None:
    label_map = (9 * rand(4, 14, 14)).long()
    low = 0.5 * rand(4, 2)
    how = {"crop_box": torch.cat([low, low + 0.45], 1), "flipped": torch.tensor([True, False] * 2), "size": (7, 7)}
    expected = align_label_map(label_map, 9, **how)
    found = in_autocast(align_label_map, label_map, 9, **how)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_half_precision_features_are_averaged_in_float32() -> None:
    features, masks = rand(3, 8, 7, 7).bfloat16(), rand(3, 5, 7, 7)
    found = in_autocast(mask_pool, features, masks)
    expected = torch.einsum("bmhw,bchw->bmc", masks.double(), features.double()) / masks.double().sum((2, 3))[..., None]
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.features.double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("assign", ["cell", "superpixel"])
def test_refined_maps_are_the_same_to_the_bit(assign: str) -> None:
    how = refinement_of(RefineSettings(clustering_group_size=2, assign=assign), max_superpixels=16)
    c4, superpixels = rand(4, 32, 14, 14).bfloat16(), (16 * rand(4, 56, 56)).int()
    expected = refine(c4, superpixels, how, uniforms=seeds(6, groups=2))
    assert torch.equal(in_autocast(refine, c4, superpixels, how, uniforms=seeds(6, groups=2)), expected)


def test_losses_of_half_precision_rows_are_those_of_the_same_numbers_in_float32() -> None:
    rows = [rand(6, 5, 16 + i).bfloat16()[..., :16] for i in range(4)]
    floats = [r.float() for r in rows]
    found = in_autocast(byol_loss, rows[0].flatten(0, 1), rows[1].flatten(0, 1))
    assert found.dtype == torch.float32
    assert torch.equal(found, byol_loss(floats[0].flatten(0, 1), floats[1].flatten(0, 1)))
    ids = ((3 * rand(6, 5)).long(), (3 * rand(6, 5, 1)).long()[..., 0])
    found = in_autocast(contrastive_loss_sum, (rows[0], rows[1]), (rows[2], rows[3]), ids, temperature=0.1)
    expected = contrastive_loss_sum((floats[0], floats[1]), (floats[2], floats[3]), ids, temperature=0.1)
    assert torch.equal(found, expected)


def test_in_a_step_networks_alone_are_in_half_precision() -> None:
    model, batch = small_model(), batch_of()
    pooled = []
    with patch.object(
        model_module, "mask_pool", lambda c5, masks, **how: pooled.append((c5, masks)) or mask_pool(c5, masks, **how)
    ):
        output = in_autocast(model, batch, seeds(5))
    assert [(c5.dtype, masks.dtype) for c5, masks in pooled] == [(torch.bfloat16, torch.float32)] * 2
    assert torch.equal(pooled[0][1], pooled[1][1])
    assert output.predictions.dtype == torch.bfloat16
    assert output.loss_sum.dtype == torch.float32
