"""Areas, pooling and RoIAlign against brute force and against geometry."""

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from train.data.views import crop_label_map
from train.r2o.masks import (
    align_label_map,
    cell_areas,
    grid_label_map,
    grid_of,
    hard_masks,
    mask_pool,
    sample_label_map,
)


def blocky_map(seed: int, size: int, num_labels: int, block: int) -> np.ndarray:
    """A map of random rectangles, so that regions have edges of every position."""
    rng = np.random.default_rng(seed)
    label_map = np.zeros((size, size), dtype=np.int64)
    for label in range(1, num_labels):
        y, x = rng.integers(0, size - block, 2)
        h, w = rng.integers(2, block, 2)
        label_map[y : y + h, x : x + w] = label
    return label_map


@pytest.mark.parametrize(("size", "grid"), [(28, (14, 14)), (28, (7, 4)), (30, (14, 8)), (13, (13, 13)), (17, (16, 5))])
def test_cell_areas_equal_a_fine_supersampling(size: int, grid: tuple[int, int]) -> None:
    label_map = blocky_map(0, size, 6, size // 2)
    areas = cell_areas(torch.from_numpy(label_map)[None], 6, grid)[0].numpy()
    # every cell border and every pixel border lies on a border of this fine raster, so counting in it is exact
    fine = np.repeat(np.repeat(label_map, grid[0], 0), grid[1], 1)
    for y in range(grid[0]):
        for x in range(grid[1]):
            cell = fine[y * size : (y + 1) * size, x * size : (x + 1) * size]
            expected = np.bincount(cell.ravel(), minlength=6) / cell.size
            np.testing.assert_allclose(areas[:, y, x], expected, atol=1e-6)


def detcon_s_masks(label_map: np.ndarray, num_labels: int, cell: int) -> np.ndarray:
    """What `create_binary_mask` of DetCon gives, from its description: averages of each cell, argmax, one-hot."""
    height, width = (side // cell for side in label_map.shape)
    is_id = (label_map[..., None] == np.arange(num_labels)).astype(np.float32)
    pooled = is_id.reshape(height, cell, width, cell, num_labels).mean((1, 3))
    return np.eye(num_labels, dtype=np.float32)[pooled.reshape(-1, num_labels).argmax(-1)].T.reshape(-1, height, width)


@pytest.mark.parametrize(("size", "num_labels"), [(224, 9), (64, 5), (96, 256)])
def test_hard_masks_are_detcon_s(size: int, num_labels: int) -> None:
    maps = np.stack([blocky_map(seed, size, num_labels, size // 2) for seed in range(4)])
    cells = (size // 32, size // 32)
    found = hard_masks(cell_areas(torch.from_numpy(maps), num_labels, cells)).numpy()
    np.testing.assert_array_equal(found, np.stack([detcon_s_masks(one, num_labels, 32) for one in maps]))
    assert (found.sum(1) == 1).all()


def test_of_equal_shares_the_lowest_id_gets_the_cell() -> None:
    halves = np.zeros((64, 64), dtype=np.int64)
    halves[:32, :16], halves[:32, 16:32] = 4, 2  # half a cell each
    halves[32:, :32] = np.indices((32, 32)).sum(0) % 2 * 2 + 1  # 3 and 1, as a chessboard
    halves[:32, 32:] = np.repeat([3, 3, 2, 4], 8)  # 3 has half
    found = hard_masks(cell_areas(torch.from_numpy(halves)[None], 5, (2, 2)))[0].argmax(0)
    assert found.tolist() == [[2, 3], [1, 0]]
    np.testing.assert_array_equal(found.numpy(), detcon_s_masks(halves, 5, 32).argmax(0))


def test_cell_areas_of_several_images_do_not_mix() -> None:
    maps = torch.from_numpy(np.stack([blocky_map(seed, 20, 5, 9) for seed in range(3)]))
    together = cell_areas(maps, 5, (6, 7))
    for i in range(3):
        torch.testing.assert_close(together[i], cell_areas(maps[i : i + 1], 5, (6, 7))[0])


def test_mask_pool_is_the_average_within_each_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 6, 4, generator=generator, dtype=torch.float64)
    label_map = torch.randint(0, 3, (2, 6, 4), generator=generator)
    pooled, area = mask_pool(features, one_hot_masks(label_map, 4).double())
    for b in range(2):
        for m in range(3):
            inside = label_map[b] == m
            torch.testing.assert_close(pooled[b, m], features[b][:, inside].mean(1))
            assert area[b, m] == inside.sum()
    assert torch.equal(pooled[:, 3], torch.zeros(2, 5, dtype=torch.float64))
    assert torch.equal(area[:, 3], torch.zeros(2, dtype=torch.float64))


def test_one_full_mask_pools_to_the_global_mean() -> None:
    features = torch.randn(3, 8, 7, 7)
    pooled = mask_pool(features, torch.ones(3, 1, 7, 7)).features
    torch.testing.assert_close(pooled[:, 0], features.mean((2, 3)))


def test_a_mask_below_one_cell_pools_to_the_cell_and_not_to_a_shrunk_one() -> None:
    features = torch.randn(1, 8, 2, 2)
    mask = torch.zeros(1, 1, 2, 2)
    mask[0, 0, 1, 0] = 0.01
    torch.testing.assert_close(mask_pool(features, mask).features[0, 0], features[0, :, 1, 0])


def full_box(batch: int) -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(batch, 1)


def test_the_full_box_is_the_identity_and_two_flips_are_none() -> None:
    label_map = torch.randint(0, 5, (2, 7, 9))
    masks = one_hot_masks(label_map, 5)
    kept, turned = torch.tensor([False, False]), torch.tensor([True, True])
    same = align_label_map(label_map, 5, crop_box=full_box(2), flipped=kept, size=(7, 9))
    torch.testing.assert_close(same, masks)
    flipped = align_label_map(label_map, 5, crop_box=full_box(2), flipped=turned, size=(7, 9))
    torch.testing.assert_close(flipped, masks.flip(3))
    twice = align_label_map(label_map.flip(2), 5, crop_box=full_box(2), flipped=turned, size=(7, 9))
    torch.testing.assert_close(twice, masks)


def one_hot_masks(label_map: torch.Tensor, num_labels: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(label_map.long(), num_labels).movedim(3, 1).float()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"), [((14, 14), (7, 7)), ((56, 56), (7, 7)), ((6, 9), (7, 4)), ((14, 14), (1, 1))]
)
def test_alignment_is_torchvision_s_roi_align(shape: tuple[int, int], size: tuple[int, int], aligned: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    label_map = torch.randint(0, 9, (64, *shape), generator=generator)
    corners = torch.rand(64, 2, 2, generator=generator).sort(1).values
    corners[:8] = (corners[:8] * 8).round() / 8  # also borders that floats represent exactly
    corners[:, 1] = corners[:, 1].clamp(min=corners[:, 0] + 0.125)
    boxes = torch.cat([corners[:, 0], corners[:, 1]], 1).clamp(max=1)
    flipped = torch.rand(64, generator=generator) < 0.5
    scaled = boxes * torch.tensor([shape[1], shape[0], shape[1], shape[0]])
    rois = torch.cat([torch.arange(64.0).unsqueeze(1), scaled], 1)
    expected = roi_align(one_hot_masks(label_map, 9), rois, output_size=size, sampling_ratio=-1, aligned=aligned)
    expected = torch.where(flipped.view(-1, 1, 1, 1), expected.flip(3), expected)
    ours = align_label_map(label_map, 9, crop_box=boxes, flipped=flipped, size=size, aligned=aligned)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "grid"), [(1, (1, 1)), (4, (2, 2)), (7, (2, 3)), (100, (10, 10)), (128, (11, 11))])
def test_grids_of_k_cells(k: int, grid: tuple[int, int]) -> None:
    assert grid_of(k) == grid
    label_map = grid_label_map(*grid, like=torch.zeros(2, 24, 24, dtype=torch.int32))
    areas = label_map[0].flatten().bincount(minlength=grid[0] * grid[1])
    assert len(areas) == grid[0] * grid[1]
    assert int(areas.min()) > 0
    assert label_map.dtype == torch.int32
    rows, columns = (torch.arange(24).view(shape) * n // 24 for shape, n in (((-1, 1), grid[0]), ((1, -1), grid[1])))
    assert torch.equal(label_map[1].long(), rows * grid[1] + columns)


@pytest.mark.parametrize("grid", [(5, 2), (2, 7)])
def test_cells_smaller_than_pixels_are_refused(grid: tuple[int, int]) -> None:
    assert cell_areas(torch.zeros(1, 4, 6, dtype=torch.int64), 1, (4, 6)).eq(1).all()
    with pytest.raises(AssertionError, match="finer than the label map"):
        cell_areas(torch.zeros(1, 4, 6, dtype=torch.int64), 1, grid)


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_on_cell_borders_give_the_cells_themselves(flip: bool) -> None:
    label_map = torch.randint(0, 6, (1, 8, 8))
    box = torch.tensor([[2 / 8, 1 / 8, 7 / 8, 5 / 8]])
    aligned = align_label_map(label_map, 6, crop_box=box, flipped=torch.tensor([flip]), size=(4, 5))
    cells = label_map[:, 1:5, 2:7]
    torch.testing.assert_close(aligned, one_hot_masks(cells.flip(2) if flip else cells, 6))


def test_masks_of_a_partition_sum_to_one_in_every_cell() -> None:
    generator = torch.Generator().manual_seed(1)
    label_map = torch.randint(0, 7, (16, 14, 14), generator=generator)
    corners = torch.rand(16, 2, 2, generator=generator).sort(1).values
    boxes = torch.cat([corners[:, 0], corners[:, 1]], 1)
    flipped = torch.rand(16, generator=generator) < 0.5
    aligned = align_label_map(label_map, 7, crop_box=boxes, flipped=flipped, size=(7, 7))
    torch.testing.assert_close(aligned.sum(1), torch.ones(16, 7, 7))


def test_alignment_agrees_with_the_masks_of_the_jointly_cropped_label_map() -> None:
    """RoIAlign of the whole map's masks ≈ area masks of the map cropped jointly with the view, flips included."""
    rng = np.random.default_rng(2)
    differences = []
    for seed in range(40):
        label_map = blocky_map(seed, 56, 6, 30)
        left, top = rng.uniform(0, 0.5, 2)
        box = (left, top, left + rng.uniform(0.3, 0.5), top + rng.uniform(0.3, 0.5))
        flip = bool(seed % 2)
        aligned = align_label_map(
            torch.from_numpy(label_map)[None],
            6,
            crop_box=torch.tensor([box], dtype=torch.float32),
            flipped=torch.tensor([flip]),
            size=(7, 7),
        )[0]
        cropped = crop_label_map(label_map, box, flipped=flip, size=(112, 112))
        expected = cell_areas(torch.from_numpy(cropped)[None], 6, (7, 7))[0]
        differences.append((aligned - expected).abs().mean().item())
    assert np.mean(differences) < 0.01
    assert max(differences) < 0.02


def test_sampled_ids_are_those_at_the_cell_centres() -> None:
    label_map = torch.arange(16 * 16).view(1, 16, 16)
    expected = torch.stack([label_map[0, 2::4, 2::4]])
    assert torch.equal(sample_label_map(label_map, (4, 4)), expected)
