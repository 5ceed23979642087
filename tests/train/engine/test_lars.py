"""LARS against the numbers of a hand-written loop in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from train.engine.lars import LARS


def reference_step(w, g, m, *, lr, momentum=0.9, decay=0.1, eta=0.02, release=False):
    if release and w.ndim > 1:
        norms = np.linalg.norm(w), np.linalg.norm(g)
        g = (g + decay * w) * (eta * norms[0] / (norms[1] + decay * norms[0]) if min(norms) > 0 else 1.0)
    if release:
        m = momentum * m + lr * g
        return w - m, m
    if w.ndim > 1:
        g = g + decay * w
        norms = np.linalg.norm(w), np.linalg.norm(g)
        g = g * (eta * norms[0] / norms[1] if min(norms) > 0 else 1.0)
    m = momentum * m + g
    return w - lr * m, m


@pytest.mark.parametrize("form", ["deepmind", "release"])
def test_three_steps_equal_the_reference(form: str) -> None:
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), (2, 3, 3, 3), (), (3, 3)]
    weights = [rng.normal(size=s) for s in shapes]
    weights[4][:] = 0  # a zero norm: ratio 1
    parameters = [nn.Parameter(torch.tensor(w, dtype=torch.float64)) for w in weights]
    optimizer = LARS(parameters, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02, form=form)
    moments = [np.zeros(s) for s in shapes]
    for lr in (0.5, 0.3, 0.0):
        for p, s in zip(parameters, shapes, strict=True):
            p.grad = torch.tensor(rng.normal(size=s), dtype=torch.float64)
        for i, p in enumerate(parameters):
            weights[i], moments[i] = reference_step(
                weights[i], p.grad.numpy(), moments[i], lr=lr, release=form == "release"
            )
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        for p, w in zip(parameters, weights, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), w, rtol=1e-12)


def test_one_step_by_hand() -> None:
    """w = (3, 4): ‖w‖ = 5. g = (0, 1) with λ = 0: ratio = 0.1·5/1 = 0.5, so w ← w - 2·0.5·g = (3, 3)."""
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[0.0, 1.0]])
    LARS([w], lr=2.0, weight_decay=0.0, trust_coefficient=0.1).step()
    assert w.tolist() == [[3.0, 3.0]]


def test_missing_gradients_and_empty_groups_are_allowed() -> None:
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([w, b], lr=1.0)
    optimizer.step()
    b.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(w, torch.ones(2, 2))
    assert torch.equal(b, torch.zeros(2))


def test_a_zero_gradient_moves_a_matrix_by_its_decay_alone() -> None:
    w = nn.Parameter(torch.full((2, 2), 2.0))
    w.grad = torch.zeros(2, 2)
    LARS([w], lr=1.0, weight_decay=0.5, trust_coefficient=0.1).step()
    # update = λw · η‖w‖/‖λw‖ = ηw
    torch.testing.assert_close(w.detach(), torch.full((2, 2), 1.8))


def test_state_survives_a_round_trip() -> None:
    def fresh() -> tuple[nn.Parameter, LARS]:
        w = nn.Parameter(torch.arange(6.0).view(2, 3) + 1)
        return w, LARS([w], lr=0.1, trust_coefficient=0.1)

    (a, a_opt), (b, b_opt) = fresh(), fresh()
    for w, o in ((a, a_opt), (b, b_opt)):
        w.grad = torch.ones(2, 3)
        o.step()
    restored = LARS([b], lr=0.1, trust_coefficient=0.1)
    restored.load_state_dict(b_opt.state_dict())
    for w, o in ((a, a_opt), (b, restored)):
        w.grad = torch.full((2, 3), 0.5)
        o.step()
    assert torch.equal(a, b)
