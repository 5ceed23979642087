"""Threads that each compute alone."""

from __future__ import annotations

import pytest
import torch

from train.evals.frozen.threads import lone_threads


def test_each_operation_takes_one_thread_and_the_number_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with lone_threads(torch.device("cpu")) as each:
            told = list(each(lambda i: (i, torch.get_num_threads()), range(5)))
        assert told == [(i, 1) for i in range(5)]
        assert torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError), lone_threads(torch.device("cpu")) as each:
            list(each(lambda i: 1 // i, [1, 0]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_gpu_takes_the_plain_map() -> None:
    with lone_threads(torch.device("cuda")) as each:
        assert each is map
