"""Rows of feature maps, and their standardisation, against NumPy and scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from train.evals.frozen.numerics import rows as module
from train.evals.frozen.numerics.rows import CellRows, TensorRows, keep_rows, row_tiles, standardise_on

CPU = torch.device("cpu")


@pytest.fixture
def cells(tmp_path: Path) -> np.ndarray:
    """Float16 on disk, (70, 2, 3, 6): some columns constant, one with a large mean."""
    values = np.random.default_rng(0).standard_normal((70, 2, 3, 6)) * [1, 2, 0.1, 0, 0, 3] + [0, 5, 1000, 0, 0.7, 0]
    np.save(tmp_path / "cells.npy", values.astype(np.float16))
    found: np.ndarray = np.load(tmp_path / "cells.npy", mmap_mode="r")
    return found


def test_standardised_as_scikit_learn_does(cells: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_ROWS", 64)
    chosen = np.flatnonzero(np.random.default_rng(1).random(420) < 0.5)
    flat = np.asarray(cells, np.float64).reshape(420, 6)
    scaler = StandardScaler().fit(flat[chosen])
    standard = standardise_on(CellRows(cells, chosen=chosen, device=CPU))
    np.testing.assert_allclose(standard.mean.numpy(), scaler.mean_, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(standard.scale.numpy(), scaler.scale_, rtol=1e-9)
    rows = CellRows(cells, chosen=np.arange(420), device=CPU, standard=standard)
    np.testing.assert_allclose(rows.read(5, 9).numpy(), scaler.transform(flat)[5:9], atol=1e-4)
    assert rows.read(0, 2).dtype == torch.float32


def test_tiles_are_all_rows_once(cells: np.ndarray) -> None:
    chosen = np.arange(0, 420, 3)
    rows = CellRows(cells, chosen=chosen, device=CPU)
    assert (len(rows), rows.width) == (140, 6)
    starts, parts = zip(*row_tiles(rows, size=33), strict=True)
    assert starts == (0, 33, 66, 99, 132)
    np.testing.assert_array_equal(torch.cat(parts).numpy(), np.asarray(cells, np.float32).reshape(420, 6)[chosen])


def test_rows_are_held_where_they_fit(cells: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = CellRows(cells, chosen=np.arange(420), device=CPU)
    kept = keep_rows(rows)
    assert isinstance(kept, TensorRows)
    assert torch.equal(kept.read(3, 300), rows.read(3, 300))
    monkeypatch.setattr(module, "HELD_BYTES", 420 * 6 * 4 - 1)
    assert keep_rows(rows) is rows
