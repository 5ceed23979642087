from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """Two classes of 99 images together, and one file that is none."""
    root = make_folder(tmp_path_factory.mktemp("source") / "images", 99, classes=("cat", "dog"))
    (root / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    return root
