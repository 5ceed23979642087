"""Whole images of a list as batches, decoded in threads before they are asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import torch
from jaxtyping import UInt8
from torch import Tensor

from train.data.resize import resized
from train.distributed.environment import node_ranks
from train.evals.datasets.annotated import ImageList

BATCHES_AHEAD = 2
MOST_THREADS = 16


def read_batches(
    images: ImageList, batches: Sequence[Sequence[int]], *, size: int
) -> Iterator[UInt8[Tensor, "b 3 size size"]]:
    """The images of each batch of indices, each resized as a whole to size × size (`resized`).

    Raises:
        InputError: as `ImageList.read`, when the image's turn has come.
    """
    waiting: deque[list[Future[Tensor]]] = deque()
    left = iter(batches)
    with ThreadPoolExecutor(_threads(), thread_name_prefix="image") as pool:
        try:
            while True:
                for batch in islice(left, BATCHES_AHEAD + 1 - len(waiting)):
                    waiting.append([pool.submit(_read, images, index, size) for index in batch])
                if not waiting:
                    return
                yield torch.stack([image.result() for image in waiting.popleft()])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(images: ImageList, index: int, size: int) -> Tensor:
    return resized(torch.from_numpy(images.read(index).image).permute(2, 0, 1), size)


def _threads() -> int:
    """This rank's share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MOST_THREADS, cores // len(node_ranks())))
