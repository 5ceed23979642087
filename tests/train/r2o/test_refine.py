"""Refinement on features whose right grouping is known."""

import numpy as np
import pytest
import torch

from train.config.pretrain import RefineSettings
from train.engine.build import refinement_of
from train.r2o.kmeans import kmeans, seeding_uniforms
from train.r2o.refine import clusters_in_use, pool_regions, refine, unrefined


def painted_scene(seed: int, size: int = 32, grid: int = 8) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Superpixels = grid cells; features = one of three directions by a known segmentation of the cells."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (grid, grid))
    directions = np.eye(3, 12) * 5
    c4 = torch.from_numpy(directions[truth] + rng.normal(0, 0.05, (grid, grid, 12))).float().permute(2, 0, 1)
    superpixels = torch.arange(grid * grid).view(grid, grid).repeat_interleave(size // grid, 0)
    return c4, superpixels.repeat_interleave(size // grid, 1), truth


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = set(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return len(pairs) == len({p[0] for p in pairs}) == len({p[1] for p in pairs})


def refined(assign: str, num_clusters: int = 3) -> tuple[torch.Tensor, np.ndarray]:
    scenes = [painted_scene(seed) for seed in range(4)]
    maps = refine(
        torch.stack([s[0] for s in scenes]),
        torch.stack([s[1] for s in scenes]),
        refinement_of(RefineSettings(clustering_group_size=4, assign=assign), max_superpixels=70),
        uniforms=seeding_uniforms(num_clusters, seed=0, step=0, first_group=0, num_groups=1),
    )
    return maps, np.stack([s[2] for s in scenes])


def test_cells_of_one_direction_become_one_mask_over_the_whole_group() -> None:
    maps, truth = refined("cell")
    assert maps.shape == (4, 8, 8)
    assert same_partition(maps.numpy(), truth)


def test_assigning_superpixels_gives_the_same_partition_on_a_finer_grid() -> None:
    maps, truth = refined("superpixel")
    assert maps.shape == (4, 32, 32)  # the map's own size, as 56 would be finer
    assert same_partition(maps.numpy(), truth.repeat(4, 1).repeat(4, 2))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("assign", ["cell", "superpixel"])
def test_raw_features_are_pooled_and_then_normalised_if_asked(assign: str, normalize: bool) -> None:
    """Against NumPy, with cells of very different lengths, which pooling must not level; only K-means is ours."""
    rng = np.random.default_rng(0)
    c4 = rng.normal(size=(4, 8, 8, 6)) * np.exp(2 * rng.normal(size=(4, 8, 8, 1)))
    superpixels = rng.integers(0, 9, (4, 16, 16))  # a cell is 2 × 2 pixels, mostly of several superpixels
    one_hot = np.eye(9)[superpixels].reshape(4, 8, 2, 8, 2, 9).mean((2, 4))
    pooled = np.einsum("bhws,bhwc->bsc", one_hot, c4) / one_hot.sum((1, 2))[..., None]
    rows, cells = pooled.reshape(2, 18, 6), c4.reshape(2, 128, 6)
    if normalize:
        rows, cells = (x / np.linalg.norm(x, axis=2, keepdims=True) for x in (rows, cells))
    uniforms = seeding_uniforms(5, seed=0, step=0, first_group=0, num_groups=2)
    found = kmeans(torch.from_numpy(rows), torch.ones(2, 18, dtype=torch.bool), uniforms=uniforms, iterations=10)
    if assign == "cell":
        expected = ((cells[:, :, None] - found.centres.numpy()[:, None]) ** 2).sum(3).argmin(2).reshape(4, 8, 8)
    else:
        expected = np.stack([found.assignment.view(4, 9).numpy()[b][superpixels[b]] for b in range(4)])
    settings = RefineSettings(clustering_group_size=2, assign=assign, normalize_features=normalize)
    how = refinement_of(settings, max_superpixels=9)
    c4_maps = torch.from_numpy(c4).permute(0, 3, 1, 2).float()
    ours = refine(c4_maps, torch.from_numpy(superpixels), how, uniforms=uniforms)
    assert (ours.numpy() == expected).mean() > 0.99  # a cell may lie between two centres


def test_absent_superpixels_are_no_regions() -> None:
    c4, superpixels, _ = painted_scene(0)
    regions = pool_regions(c4[None], superpixels[None], max_superpixels=70)
    assert regions.valid.tolist() == [[True] * 64 + [False] * 6]
    torch.testing.assert_close(regions.features[0, :64], c4.flatten(1).T)


def test_groups_do_not_depend_on_what_shares_the_batch() -> None:
    scenes = [painted_scene(seed) for seed in range(4)]
    c4, superpixels = torch.stack([s[0] for s in scenes]), torch.stack([s[1] for s in scenes])
    how = refinement_of(RefineSettings(clustering_group_size=2), max_superpixels=64)
    uniforms = seeding_uniforms(4, seed=1, step=7, first_group=0, num_groups=2)
    together = refine(c4, superpixels, how, uniforms=uniforms)
    second = refine(c4[2:], superpixels[2:], how, uniforms=uniforms[1:])
    assert torch.equal(together[2:], second)


def test_clusters_in_use() -> None:
    refined_map = torch.tensor([[[0, 0], [3, 3]], [[1, 1], [1, 1]]])
    assert clusters_in_use(refined_map, num_clusters=4).tolist() == [2, 1]


def test_cells_and_a_grid_of_cells_are_regions_too() -> None:
    scenes = [painted_scene(seed) for seed in range(4)]
    c4, superpixels = torch.stack([s[0] for s in scenes]), torch.stack([s[1] for s in scenes])
    truth = np.stack([s[2] for s in scenes])
    uniforms = seeding_uniforms(3, seed=0, step=0, first_group=0, num_groups=1)
    for regions, grid in (("cells", None), ("grid", (8, 8))):
        how = refinement_of(RefineSettings(clustering_group_size=4, regions=regions, grid=grid), max_superpixels=1)
        assert same_partition(refine(c4, superpixels, how, uniforms=uniforms).numpy(), truth)


def test_without_clustering_the_regions_are_the_masks() -> None:
    _, superpixels, _ = painted_scene(0)

    def masks(num_clusters: int, **regions: object) -> torch.Tensor:
        refine_settings = RefineSettings(clustering_group_size=1, clustering="none", **regions)
        how = refinement_of(refine_settings, max_superpixels=64)
        return unrefined(superpixels[None], how, num_clusters=num_clusters, c4_size=(8, 8))

    assert masks(9).flatten().tolist() == list(range(64))
    assert masks(4, regions="grid")[0, ::4, ::4].tolist() == [[0, 1], [2, 3]]
    assert int(masks(9, regions="image").max()) == 0
