"""K-means against scikit-learn, and the cases that break a careless one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans

from tests.train.made_shards import like_slic
from train.data.augment import normalize
from train.models.backbone import build_backbone
from train.r2o.kmeans import (
    _even_sample,
    _sums_by_product,
    _sums_by_row,
    _update_centres,
    kmeans,
    seeding_uniforms,
    squared_distances,
)
from train.r2o.refine import pool_regions

PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "imagenet1k_sample"


def blobs(seed: int, rows: int = 300, channels: int = 16, centres: int = 8) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    means = rng.normal(0, 1, (centres, channels))
    return torch.from_numpy(means[rng.integers(0, centres, rows)] + rng.normal(0, 0.4, (rows, channels))).float()


def uniforms_of(num_clusters: int, seed: int = 0, groups: int = 1) -> torch.Tensor:
    return seeding_uniforms(num_clusters, seed=seed, step=0, first_group=0, num_groups=groups)


def everything(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(rows.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("num_clusters", [2, 8, 20])
def test_lloyd_from_the_same_seeds_is_scikit_learns(num_clusters: int) -> None:
    rows = blobs(1)[None]
    seeds = kmeans(rows, everything(rows), uniforms=uniforms_of(num_clusters), iterations=0).centres[0]
    ours = kmeans(rows, everything(rows), uniforms=uniforms_of(num_clusters), iterations=50)
    theirs = KMeans(num_clusters, init=seeds.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(rows[0])
    assert ours.inertia.item() == pytest.approx(theirs.inertia_, rel=1e-5)
    assert np.array_equal(ours.assignment[0].numpy(), theirs.labels_)
    np.testing.assert_allclose(ours.centres[0].numpy(), theirs.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize("num_clusters", [4, 32])
def test_median_inertia_is_as_good_as_scikit_learns(num_clusters: int) -> None:
    rows = torch.nn.functional.normalize(blobs(2, rows=600, centres=40), dim=1)[None]
    ours = [
        kmeans(rows, everything(rows), uniforms=uniforms_of(num_clusters, seed), iterations=20).inertia.item()
        for seed in range(20)
    ]
    theirs = [
        KMeans(num_clusters, n_init=1, random_state=seed, init="k-means++").fit(rows[0]).inertia_ for seed in range(20)
    ]
    assert np.median(ours) <= 1.02 * np.median(theirs)


@pytest.fixture(scope="module")
def rows_of_photographs() -> torch.Tensor:
    """Regions of 32 ImageNet photographs in an untrained ResNet-50's C4: about 3,200 unit rows of 1,024."""
    paths = sorted(PHOTOS.rglob("*.JPEG"))[::5][:32]
    pixels = [np.asarray(Image.open(path).convert("RGB").resize((224, 224)), dtype=np.float32) for path in paths]
    images = normalize(torch.from_numpy(np.stack(pixels)).byte().permute(0, 3, 1, 2))
    label_maps = [like_slic(p.astype(np.uint8), segments=100) for p in pixels]
    with torch.no_grad():
        c4 = build_backbone("resnet50", seed=0).train().forward_c4(images)
    regions = pool_regions(c4, torch.from_numpy(np.stack(label_maps)).int(), max_superpixels=100)
    return torch.nn.functional.normalize(regions.features[regions.valid], dim=1)


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no ../shared/data/imagenet1k_sample")
@pytest.mark.parametrize("num_clusters", [4, 32, 128])
def test_median_inertia_on_c4_of_photographs(rows_of_photographs: torch.Tensor, num_clusters: int) -> None:
    rows = rows_of_photographs[None]
    ours = [
        kmeans(rows, everything(rows), uniforms=uniforms_of(num_clusters, seed), iterations=10).inertia.item()
        for seed in range(20)
    ]
    theirs = [KMeans(num_clusters, n_init=1, random_state=seed).fit(rows[0].numpy()).inertia_ for seed in range(20)]
    assert np.median(ours) <= 1.02 * np.median(theirs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_nothing_is_read_back_and_the_inertia_is_the_cpu_s() -> None:
    rows = torch.stack([blobs(seed) for seed in range(3)])
    uniforms = uniforms_of(6, groups=3)
    there = rows.cuda(), everything(rows).cuda(), uniforms.cuda()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = kmeans(there[0], there[1], uniforms=there[2], iterations=20)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = kmeans(rows, everything(rows), uniforms=uniforms, iterations=20)
    torch.testing.assert_close(result.inertia.cpu(), expected.inertia, rtol=1e-3, atol=0)


def test_each_group_is_clustered_on_its_own() -> None:
    rows = torch.stack([blobs(seed) for seed in range(3)])
    uniforms = uniforms_of(6, groups=3)
    together = kmeans(rows, everything(rows), uniforms=uniforms, iterations=15)
    for g in range(3):
        alone = kmeans(rows[g : g + 1], everything(rows[:1]), uniforms=uniforms[g : g + 1], iterations=15)
        assert torch.equal(together.assignment[g], alone.assignment[0])


def test_invalid_rows_change_nothing() -> None:
    rows = blobs(3)[None]
    junk = torch.full((1, 50, rows.shape[2]), 7.0)
    padded = torch.cat([rows, junk], 1)
    valid = torch.cat([everything(rows), torch.zeros(1, 50, dtype=torch.bool)], 1)
    alone = kmeans(rows, everything(rows), uniforms=uniforms_of(5), iterations=10)
    with_junk = kmeans(padded, valid, uniforms=uniforms_of(5), iterations=10)
    assert torch.equal(alone.assignment[0], with_junk.assignment[0, : rows.shape[1]])
    torch.testing.assert_close(alone.centres, with_junk.centres)
    torch.testing.assert_close(alone.inertia, with_junk.inertia)


@pytest.mark.parametrize("num_clusters", [7, 8, 40])
def test_k_at_or_above_the_distinct_rows_gives_each_its_own_cluster(num_clusters: int) -> None:
    distinct = torch.nn.functional.normalize(torch.randn(7, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    rows = distinct.repeat(5, 1)[None]
    result = kmeans(rows, everything(rows), uniforms=uniforms_of(num_clusters), iterations=10)
    assert result.inertia.item() == pytest.approx(0, abs=1e-5)
    first = result.assignment[0, :7]
    assert len(set(first.tolist())) == 7
    assert torch.equal(result.assignment[0].view(5, 7), first.repeat(5, 1))


@pytest.mark.parametrize("seed", range(5))
def test_a_hundred_distinct_rows_among_many_copies_all_get_a_cluster(seed: int) -> None:
    """A batch of few colours: K as large as its distinct rows, each of which comes 1 to 60 times."""
    rng = np.random.default_rng(seed)
    distinct = torch.from_numpy(rng.normal(size=(100, 24))).float()
    rows = distinct[torch.from_numpy(rng.permutation(np.repeat(np.arange(100), rng.integers(1, 61, 100))))][None]
    result = kmeans(rows, everything(rows), uniforms=uniforms_of(100, seed), iterations=10)
    assert result.inertia.item() == pytest.approx(0, abs=1e-4)
    assert len(result.assignment.unique()) == 100


def test_a_group_that_has_converged_is_frozen() -> None:
    rows = torch.stack([blobs(seed) for seed in range(3)])
    done, later = (kmeans(rows, everything(rows), uniforms=uniforms_of(6, groups=3), iterations=n) for n in (60, 75))
    assert torch.equal(done.centres, later.centres)
    assert torch.equal(done.assignment, later.assignment)


def test_one_row_and_one_cluster() -> None:
    row = torch.tensor([[[3.0, -1.0]]])
    result = kmeans(row, everything(row), uniforms=uniforms_of(1), iterations=3)
    assert torch.equal(result.centres, row)
    assert result.assignment.tolist() == [[0]]
    assert result.inertia.tolist() == [0]


def test_half_precision_is_clustered_in_float32() -> None:
    rows = blobs(4)[None].bfloat16()
    half, full = (kmeans(r, everything(r), uniforms=uniforms_of(5), iterations=10) for r in (rows, rows.float()))
    assert half.centres.dtype == torch.float32
    assert torch.equal(half.centres, full.centres)


def test_more_clusters_than_rows() -> None:
    rows = torch.randn(1, 3, 4)
    result = kmeans(rows, everything(rows), uniforms=uniforms_of(10), iterations=5)
    assert len(set(result.assignment[0].tolist())) == 3
    assert torch.isfinite(result.centres).all()


@pytest.mark.parametrize(
    ("rows", "valid"),
    [
        (torch.ones(1, 20, 4), torch.ones(1, 20, dtype=torch.bool)),
        (torch.zeros(1, 20, 4), torch.ones(1, 20, dtype=torch.bool)),
        (torch.randn(1, 20, 4), torch.zeros(1, 20, dtype=torch.bool)),
        (torch.full((1, 20, 4), torch.nan), torch.zeros(1, 20, dtype=torch.bool)),
    ],
    ids=["equal", "zero", "none valid", "none valid and not finite"],
)
def test_degenerate_rows_give_finite_centres_and_a_cluster_for_every_row(
    rows: torch.Tensor, valid: torch.Tensor
) -> None:
    result = kmeans(rows, valid, uniforms=uniforms_of(5), iterations=5)
    assert torch.isfinite(result.centres).all()
    assert ((result.assignment >= 0) & (result.assignment < 5)).all()


def test_empty_clusters_move_to_the_farthest_rows_one_each() -> None:
    rows = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [9.0, 0.0], [0.0, 7.0], [0.0, 0.0]]])
    valid = torch.tensor([[True, True, True, True, False]])
    centres = torch.tensor([[[0.0, 0.5], [-30.0, 0.0], [-30.0, 1.0]]])
    distance, assignment = squared_distances(rows, centres).min(2)
    assert assignment[0, :4].tolist() == [0, 0, 0, 0]
    moved = _update_centres(rows, valid.float(), centres, assignment, distance)
    assert moved[0].tolist() == [[2.25, 2.0], [9.0, 0.0], [0.0, 7.0]]


def test_squared_distances_are_exact_up_to_float32() -> None:
    rows, centres = torch.randn(2, 9, 5), torch.randn(2, 4, 5)
    expected = (rows.double()[:, :, None] - centres.double()[:, None]).square().sum(3)
    torch.testing.assert_close(squared_distances(rows, centres).double(), expected, atol=1e-5, rtol=1e-5)


def test_seeds_belong_to_seed_step_and_group_alone() -> None:
    together = seeding_uniforms(9, seed=3, step=5, first_group=0, num_groups=4)
    apart = torch.cat([seeding_uniforms(9, seed=3, step=5, first_group=g, num_groups=1) for g in range(4)])
    assert torch.equal(together, apart)
    assert len({tuple(row.flatten().tolist()) for row in together}) == 4
    assert not torch.equal(together, seeding_uniforms(9, seed=3, step=6, first_group=0, num_groups=4))


def test_both_ways_to_sum_a_cluster_agree() -> None:
    rows = torch.stack([blobs(0), blobs(1)])
    assignment = torch.randint(0, 9, rows.shape[:2], generator=torch.Generator().manual_seed(0))
    members = torch.nn.functional.one_hot(assignment, 9).float()
    by_row, by_product = (f(rows, members, assignment) for f in (_sums_by_row, _sums_by_product))
    torch.testing.assert_close(by_row, by_product, atol=1e-4, rtol=1e-5)
    expected = np.stack([[rows[g][assignment[g] == k].double().sum(0).numpy() for k in range(9)] for g in range(2)])
    np.testing.assert_allclose(by_row.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("valid_rows", [3, 40, 600, 2000])
def test_seeding_draws_from_every_row_or_from_an_even_share(valid_rows: int) -> None:
    valid = torch.rand(2, 2500, generator=torch.Generator().manual_seed(1)).argsort(1) < valid_rows
    index, present = _even_sample(valid, torch.tensor([0.0, 0.999]), 512)
    for g in range(2):
        places = valid[g].nonzero().squeeze(1)
        taken = index[g][present[g]]
        assert len(set(taken.tolist())) == len(taken) == min(valid_rows, 512)
        gaps = torch.searchsorted(places, taken).diff()
        assert int(gaps.max() - gaps.min()) <= 1
