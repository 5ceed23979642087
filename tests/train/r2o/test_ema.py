"""The target's update, against the formula of A.1."""

import torch
from torch import nn

from train.r2o.ema import update_target


def network(value: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)
        module[1].running_mean.fill_(value)
    return module


def test_parameters_move_and_buffers_stay() -> None:
    target, online = network(1.0), network(3.0)
    update_target(target, online, target_ema=0.9)
    for p in target.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.9 * 1.0 + 0.1 * 3.0))
    assert torch.equal(target[1].running_mean, torch.ones(3))


def test_limits() -> None:
    target, online = network(1.0), network(3.0)
    update_target(target, online, target_ema=1.0)
    assert all(torch.equal(p, torch.ones_like(p)) for p in target.parameters())
    update_target(target, online, target_ema=0.0)
    assert all(torch.equal(p, torch.full_like(p, 3.0)) for p in target.parameters())
