"""The measurement of the prior, on scenes whose masks are known."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preprocess.config import ShardSettings
from tests.evidence import prior
from tests.train.made_shards import write_images, write_shards


def by_definition(one: np.ndarray, other: np.ndarray) -> float:
    """2 · I / (H + H'), by counting pairs."""
    count = one.size
    pairs: dict[tuple[int, int], int] = {}
    for pair in zip(one.ravel().tolist(), other.ravel().tolist(), strict=True):
        pairs[pair] = pairs.get(pair, 0) + 1
    sides = [[sum(n for pair, n in pairs.items() if pair[side] == label) for label in {p[side] for p in pairs}]
             for side in (0, 1)]  # fmt: skip
    entropy = [-sum(n / count * math.log(n / count) for n in side) for side in (*sides, list(pairs.values()))]
    return 2 * (entropy[0] + entropy[1] - entropy[2]) / (entropy[0] + entropy[1])


def test_nmi_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, (2, 6, 6)), rng.integers(0, 3, (2, 6, 6))
    other[one == 4] = 7
    assert prior.nmi(one, other) == pytest.approx(by_definition(one, other))
    assert prior.nmi(one, 9 - one) == pytest.approx(1)


class AsItIs(torch.nn.Module):
    """Stands for a backbone: C4 is the image's own first channels, at 14 × 14."""

    def forward_c4(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(images, (14, 14), mode="area")


def halves(*, edge: int) -> prior.Pictures:
    """Two colours that meet at a column, and two superpixels that meet there as well; 224 px."""
    pixels, superpixels = torch.zeros(4, 3, 224, 224, dtype=torch.uint8), torch.zeros(4, 224, 224, dtype=torch.int32)
    pixels[:, 0, :, :edge], pixels[:, 1, :, edge:], superpixels[:, :, edge:] = 255, 255, 1
    return prior.Pictures(pixels, superpixels)


def test_a_prior_moves_masks_where_it_is_painted_and_cells_go_where_they_belong() -> None:
    """The edge lies on one of C4's, and through boxes of the grid: 14 columns of cells, boxes of 22.4 pixels."""
    found = prior.measured(AsItIs(), halves(edge=7 * 16 + 16), group=4, clusters=[2])  # type: ignore[arg-type]
    nmi = {(one["assign"], one["changed"]): one["group"] for one in found}
    assert nmi["cell", "10 × 10, same seed"] == pytest.approx(1)
    assert nmi["cell", "SLIC, another seed"] == nmi["superpixel", "SLIC, another seed"] == pytest.approx(1)
    # The edge is at pixel 128, column 32 of 56. The box from 112 to 134.4 is of the first colour for the most part, so
    # that the first mask goes on to column 34, whose centre is the first beyond 134.4.
    columns = np.arange(56)
    expected = by_definition((columns < 32).astype(int), (columns < 34).astype(int))
    assert nmi["superpixel", "10 × 10, same seed"] == pytest.approx(expected)
    assert 0.7 < expected < 0.9


def test_the_command_measures_shards_and_folders(
    shards_of_photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior, "machine_of_evidence", lambda: {"commit": "c0ffee"})
    how = ["--backbone=resnet18", "--count=5", "--group=4", "--size=64", "--clusters", "5", "2"]
    tables = []
    for source in (f"--shards={shards_of_photographs / 'shards'}", f"--images={shards_of_photographs / 'images'}"):
        assert prior.main([source, *how, f"--out={tmp_path / 'found.json'}"]) == 0
        stored = json.loads((tmp_path / "found.json").read_bytes())
        assert stored["commit"] == "c0ffee"
        tables.append(stored["nmi"])
        assert "4 images of" in capsys.readouterr().out
    for table in tables:
        assert {(one["assign"], one["clusters"], one["changed"]) for one in table} == {
            (assign, k, changed) for assign in prior.READINGS for k in (5, 2) for changed in prior.COMPARED
        }
        assert all(0 <= one["group"] <= 1 and 0 <= one["image"] <= 1 for one in table)
    assert tables[0] != tables[1]  # other superpixels


@pytest.fixture
def shards_of_photographs(tmp_path: Path) -> Path:
    write_images(tmp_path / "images", count=6)
    write_shards(
        tmp_path / "images", tmp_path / "shards",
        ShardSettings.model_validate({"images_per_shard": 4, "superpixels": {"size": 64, "segments": 25}}),
    )  # fmt: skip
    return tmp_path


def test_a_folder_has_as_many_images_as_are_wanted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(AssertionError, match="1 images, but 2 are wanted"):
        prior.of_folder(tmp_path, count=2, size=64)
