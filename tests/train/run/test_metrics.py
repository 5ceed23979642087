import psutil
import pytest
import torch

from train.run.metrics import memory_gb


def test_memory_is_what_is_resident() -> None:
    held = torch.ones(50_000_000)  # 0.2 GB that are touched
    assert memory_gb(torch.device("cpu")) == pytest.approx(psutil.Process().memory_info().rss / 1e9, rel=0.05)
    assert len(held)
