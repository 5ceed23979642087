"""Generated results below tmp_path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.scores import ImageCounts
from tests.pipeline.report.made_results import Write, write_fine_tuned, write_frozen


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(folder, …)`: one result below tmp_path. Gives its counts."""

    def one(folder: str, **given: Any) -> ImageCounts:
        return write_frozen(tmp_path / folder, **given)

    return one


@pytest.fixture
def write_fine_tuning(tmp_path: Path) -> Callable[..., Path]:
    """`write_fine_tuning(folder, {init: {seed: mIoU}})`: results of eval-voc below tmp_path. Gives their path."""

    def one(folder: str, by_init: dict[str, dict[int, float | None]], **members: Any) -> Path:
        return write_fine_tuned(tmp_path / folder / "results.json", by_init, **members)

    return one
