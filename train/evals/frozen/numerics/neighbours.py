"""Exact nearest neighbours at nearly the speed of the matrix products alone.

On a CPU a tile of similarities is looked through by the maximum of each block of columns. Only blocks that hold
something better than the k-th best so far are opened. The further the search is, the fewer these are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.foundation.progress import Progress
from train.evals.frozen.numerics.rows import Rows, row_tiles
from train.evals.frozen.threads import lone_threads

Distance = Literal["cosine", "l2", "inner_product"]
QUERIES, BANK_ROWS, BLOCKS = 2048, 4096, 128  # of one matrix product; blocks of its columns
GPU_BANK_ROWS = 65536
LEAST_QUERIES = 512  # of a thread
PRUNING_DEVICES = ("cpu",)
INDEX_BITS = (1 << 32) - 1


class Neighbours(NamedTuple):
    """The k nearest rows of the bank for each query, nearest first; of equally near ones the lower index first.

    `values`: the cosine or the inner product, descending, or the Euclidean distance, ascending.
    """

    indices: Int64[Tensor, "queries k"]
    values: Float32[Tensor, "queries k"]


class _Pruned:
    """The k best of some queries among the rows of the bank so far, on a CPU.

    Work between the products is NumPy's, whose sorts of short rows are the fastest. A candidate is one integer
    (`_keys`), so that equal similarities have an order.
    """

    def __init__(self, queries: Float32[Tensor, "queries width"], k: int) -> None:
        self.queries, self.k = queries, k
        self.best = np.full((len(queries), k), np.iinfo(np.int64).min)
        # Only what is above it can still be among the k best.
        self.bar = np.full((len(queries), 1), -np.inf, dtype=np.float32)
        self.rows: list[np.ndarray] = []
        self.found: list[np.ndarray] = []

    def look(self, bank: Float32[Tensor, "rows width"], first: int, *, buffer: Float32[Tensor, "queries rows"]) -> None:
        """Take what is above the bar from a tile of the bank that begins at row `first`."""
        product = buffer[: len(self.queries), : len(bank)]
        torch.mm(self.queries, bank.T, out=product)
        in_blocks = _in_blocks(product)
        blocks, maxima = in_blocks.numpy(), in_blocks.amax(1).numpy()
        if first == 0 and self.k <= BLOCKS:
            # k blocks have a maximum that is not below their k-th best one: all that is below cannot be of the k best.
            bound = np.partition(maxima, BLOCKS - self.k, axis=1)[:, BLOCKS - self.k, None]
            self.bar = np.nextafter(bound, np.float32(-np.inf))
        row, block = np.divmod(np.flatnonzero(maxima > self.bar), BLOCKS)
        opened = blocks[row, :, block]
        which, member = np.divmod(np.flatnonzero(opened > self.bar[row]), opened.shape[1])
        self.rows.append(row[which].astype(np.int16))
        self.found.append(_keys(opened[which, member], first + member * BLOCKS + block[which]))
        if sum(map(len, self.found)) >= self.best.size:
            self.merge()

    def merge(self) -> None:
        """Bring what was found among the best, and raise the bar."""
        row, found = np.concatenate(self.rows), np.concatenate(self.found)
        order = np.argsort(row, kind="stable")  # a radix sort of 16-bit integers
        row = row[order]
        counts = np.bincount(row, minlength=len(self.best))
        place = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        keys = np.full((len(self.best), self.k + int(counts.max())), np.iinfo(np.int64).min)
        keys[:, : self.k] = self.best
        keys[row, self.k + place] = found[order]
        keys.sort(axis=1)
        self.best = keys[:, : -self.k - 1 : -1]
        self.bar = np.maximum(self.bar, _values_of(self.best[:, -1:]))
        self.rows, self.found = [], []

    def result(self) -> Neighbours:
        """Indices and similarities."""
        if self.found:
            self.merge()
        indices, values = INDEX_BITS - (self.best & INDEX_BITS), _values_of(self.best)
        return Neighbours(torch.from_numpy(indices), torch.from_numpy(values))


def _in_blocks(product: Tensor) -> Tensor:
    """(queries, members, BLOCKS): block b has the columns b, b + BLOCKS, …; those that are missing are −inf."""
    missing = -product.shape[1] % BLOCKS
    full = F.pad(product, (0, missing), value=-torch.inf) if missing else product
    blocks: Tensor = full.unflatten(1, (-1, BLOCKS))
    return blocks


def _keys(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One int64 for each candidate: greater for a greater value, and for a lower index of equal values."""
    bits = (values + np.float32(0)).view(np.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys: np.ndarray = (ordered.astype(np.int64) << 32) | (INDEX_BITS - indices)
    return keys


def _values_of(keys: np.ndarray) -> np.ndarray:
    """The values of candidates."""
    ordered = (keys >> 32).astype(np.int32)
    bits = ordered ^ ((ordered >> 31) & np.int32(0x7FFFFFFF))
    return bits.view(np.float32)


class _Dense:
    """The same by torch's topk, on a GPU."""

    def __init__(self, queries: Float32[Tensor, "queries width"], k: int) -> None:
        self.queries, self.k = queries, k
        self.best = torch.zeros(len(queries), 0, dtype=torch.int64, device=queries.device)

    def look(self, bank: Float32[Tensor, "rows width"], first: int) -> None:
        """Bring a tile of the bank that begins at row `first` among the best."""
        bits = (self.queries @ bank.T).add_(0.0).view(torch.int32)
        ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
        indices = torch.arange(first, first + len(bank), device=bank.device)
        keys = torch.cat([self.best, (ordered.long() << 32) | (INDEX_BITS - indices)], 1)
        self.best = keys.topk(min(self.k, keys.shape[1])).values

    def result(self) -> Neighbours:
        """Indices and similarities."""
        ordered = (self.best >> 32).int()
        values = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)
        return Neighbours(INDEX_BITS - (self.best & INDEX_BITS), values)


def nearest(queries: Rows, bank: Rows, *, k: int, distance: Distance) -> Neighbours:
    """The k nearest rows of the bank for each query, by float32 products of finite features.

    Memory: the queries, and the bank and 32 MiB of similarities a tile at a time (each thread its own; a GPU: 1.5 GiB).

    Args:
        k: at most the rows of the bank.
    """
    assert 0 < k <= len(bank), "as many neighbours as the bank has rows"
    asked = [_as_query(tile, distance) for _, tile in row_tiles(queries)]
    if not asked:
        return Neighbours(torch.zeros(0, k, dtype=torch.int64), torch.zeros(0, k))
    everyone = torch.cat(asked)
    search = _search_pruned if everyone.device.type in PRUNING_DEVICES else _search_dense
    indices, values = (torch.cat(parts) for parts in zip(*search(everyone, bank, k, distance), strict=True))
    if distance == "l2":
        values = (everyone[:, :-1].square().sum(1, keepdim=True) - 2 * values).clamp_min(0).sqrt()
    return Neighbours(indices, values)


def _search_dense(queries: Tensor, bank: Rows, k: int, distance: Distance) -> list[Neighbours]:
    """By inner product, a part of the queries after the other. Each tile of the bank is read once."""
    parts = [_Dense(part, k) for part in queries.split(QUERIES)]
    for first, tile in row_tiles(bank, size=GPU_BANK_ROWS):
        rows = _as_bank(tile, distance)
        for part in parts:
            part.look(rows, first)
    return [part.result() for part in parts]


def _search_pruned(queries: Tensor, bank: Rows, k: int, distance: Distance) -> list[Neighbours]:
    """The same with a thread for each of torch's, which goes through the bank with its own queries.

    So no core waits for another between a product and what is made of it.
    """
    workers = max(1, min(torch.get_num_threads(), len(queries) // LEAST_QUERIES))
    # Equally many parts for every worker, of equal size.
    rounds = -(-len(queries) // (QUERIES * workers))
    parts = [_Pruned(part, k) for part in queries.split(-(-len(queries) // (rounds * workers)))]

    progress = Progress("nearest neighbours", len(bank), "rows of the bank", short_is_silent=True)

    def look(own: list[_Pruned]) -> None:
        buffer = torch.empty(QUERIES, BANK_ROWS)
        for first, tile in row_tiles(bank, size=BANK_ROWS):
            rows = _as_bank(tile, distance)
            for part in own:
                part.look(rows, first, buffer=buffer)
            if own[0] is parts[0]:
                progress.advance(len(tile))

    with lone_threads(queries.device) as each:
        for _ in each(look, [parts[i::workers] for i in range(workers)]):
            pass
    return [part.result() for part in parts]


def _as_query(rows: Tensor, distance: Distance) -> Tensor:
    """Queries whose inner product with the bank's rows ranks as the distance does."""
    if distance == "cosine":
        return F.normalize(rows)
    return F.pad(rows, (0, 1), value=1.0) if distance == "l2" else rows


def _as_bank(rows: Tensor, distance: Distance) -> Tensor:
    """Rows of the bank: |q − b|² = |q|² − 2 (q·b − |b|² / 2)."""
    if distance == "cosine":
        return F.normalize(rows)
    return torch.cat([rows, rows.square().sum(1, keepdim=True) / -2], 1) if distance == "l2" else rows
