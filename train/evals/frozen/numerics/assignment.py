"""One-to-one matching at the least total cost (the Hungarian problem)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def match_at_least_cost(cost: Float[np.ndarray, "r c"]) -> Int[np.ndarray, "pairs 2"]:
    """Pairs (row, column), min(r, c) of them in the order of rows, whose summed cost is the least that there is.

    Shortest augmenting paths (Jonker and Volgenant 1987, as Crouse 2016 gives them): O(n³) for n × n.

    Raises:
        ValueError: a cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError("every cost must be finite")
    if cost.shape[0] > cost.shape[1]:
        pairs = match_at_least_cost(cost.T)[:, ::-1]
        ordered: np.ndarray = pairs[np.argsort(pairs[:, 0])]
        return ordered
    row_of_column = _match_rows(np.asarray(cost, dtype=np.float64))
    columns = np.flatnonzero(row_of_column >= 0)
    matched = np.stack([row_of_column[columns], columns], axis=1)
    in_order: np.ndarray = matched[np.argsort(matched[:, 0])]
    return in_order


def _match_rows(cost: np.ndarray) -> np.ndarray:
    """The row of each column, -1 where it has none; every row gets a column (r ≤ c)."""
    num_rows, num_columns = cost.shape
    row_price, column_price = np.zeros(num_rows), np.zeros(num_columns)
    row_of_column = np.full(num_columns, -1)
    for first in range(num_rows):
        length = np.full(num_columns, np.inf)
        before = np.full(num_columns, -1)
        done = np.zeros(num_columns, dtype=bool)
        row, reached, end = first, 0.0, -1
        while end < 0:
            through = reached + cost[row] - row_price[row] - column_price
            shorter = ~done & (through < length)
            length[shorter], before[shorter] = through[shorter], row
            nearest = int(np.where(done, np.inf, length).argmin())
            done[nearest], reached = True, float(length[nearest])
            row = int(row_of_column[nearest])
            end = nearest if row < 0 else -1
        _raise_prices(row_price, column_price, first, reached, length, done, row_of_column)
        _turn_path(row_of_column, before, first, end)
    return row_of_column


def _raise_prices(
    row_price: np.ndarray,
    column_price: np.ndarray,
    first: int,
    reached: float,
    length: np.ndarray,
    done: np.ndarray,
    row_of_column: np.ndarray,
) -> None:
    """Keep every reduced cost at 0 or above, and those of matched pairs at 0."""
    gain = reached - length[done]
    column_price[done] -= gain
    matched = row_of_column[done] >= 0
    row_price[row_of_column[done][matched]] += gain[matched]
    row_price[first] += reached


def _turn_path(row_of_column: np.ndarray, before: np.ndarray, first: int, end: int) -> None:
    """Give every column of the path to the row that reached it; the free row `first` ends up with one."""
    column = end
    while True:
        row = int(before[column])
        previous = np.flatnonzero(row_of_column == row)
        row_of_column[column] = row
        if row == first:
            return
        column = int(previous[0])
