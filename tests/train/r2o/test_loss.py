"""Eqs. 4 and 5 against NumPy."""

import numpy as np
import torch

from train.r2o.loss import byol_loss, symmetric_loss_sum


def numpy_byol(q: np.ndarray, z: np.ndarray) -> np.ndarray:
    unit_q, unit_z = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, z))
    return ((unit_q - unit_z) ** 2).sum(1)  # BYOL's normalised mean squared error, which 2 - 2cos equals


def test_equation_4() -> None:
    q, z = torch.randn(20, 7), torch.randn(20, 7)
    np.testing.assert_allclose(byol_loss(q, z).numpy(), numpy_byol(q.numpy(), z.numpy()), atol=1e-5)


def test_limits() -> None:
    q = torch.randn(4, 3)
    assert torch.allclose(byol_loss(q, 5 * q), torch.zeros(4), atol=1e-6)
    assert torch.allclose(byol_loss(q, -q), torch.full((4,), 4.0), atol=1e-6)


def test_equation_5_pairs_each_view_with_the_other() -> None:
    q1, q2, z1, z2 = (torch.randn(9, 5) for _ in range(4))
    expected = numpy_byol(q1.numpy(), z2.numpy()).sum() + numpy_byol(q2.numpy(), z1.numpy()).sum()
    np.testing.assert_allclose(symmetric_loss_sum((q1, q2), (z1, z2)).item(), expected, rtol=1e-5)


def test_no_masks_give_zero_loss_and_a_zero_gradient() -> None:
    q = torch.zeros(0, 5, requires_grad=True)
    loss = symmetric_loss_sum((q, q), (q.detach(), q.detach()))
    loss.backward()
    assert loss.item() == 0
    assert q.grad is not None
