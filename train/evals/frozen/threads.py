"""Threads that each compute alone, instead of all of them on each operation in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class OrderedMap(Protocol):
    """Like `map`: results come in the order of the arguments."""

    def __call__(self, function: Callable[[T], R], arguments: Iterable[T], /) -> Iterator[R]: ...  # noqa: D102


@contextmanager
def lone_threads(device: torch.device) -> Iterator[OrderedMap]:
    """A `map` over as many threads as torch has on the CPU, while each operation takes one thread.

    Between short operations the threads of one operation wait for each other; these wait once, at the end. On a GPU
    it is the plain `map`, and where torch has one thread.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    try:
        # Threads that are started now take over this number.
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
