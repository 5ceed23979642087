from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocess.config import ShardSettings
from preprocess.plan import Plan, permuted
from preprocess.sources import Listing, Source


def listing_of(count: int, *, has_classes: bool = False) -> Listing:
    folder = b"cat/" if has_classes else b""
    images = tuple(Source(b"%s%04d.jpg" % (folder, n), n) for n in range(count))
    return Listing(root=Path("images"), images=images, ignored=0, has_classes=has_classes)


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 4097])
def test_permutation_is_a_bijection(total):
    assert sorted(permuted(np.arange(total), total=total, seed=3)) == list(range(total))


def test_permutation_depends_on_seed_alone():
    whole = permuted(np.arange(1000), total=1000, seed=0)
    piecewise = np.concatenate([permuted(np.arange(i, i + 50), total=1000, seed=0) for i in range(0, 1000, 50)])
    np.testing.assert_array_equal(whole, piecewise)
    assert (whole != permuted(np.arange(1000), total=1000, seed=1)).sum() > 980


def test_permutation_of_other_machines_is_ours():
    """Golden: shards made elsewhere hold the same images."""
    assert permuted(np.arange(10), total=10, seed=0).tolist() == [2, 3, 0, 4, 1, 7, 8, 6, 5, 9]


def test_permutation_mixes_evenly():
    """Each shard of 100 draws from each tenth of 10,000 images about 10 times (binomial, sd 3)."""
    order = permuted(np.arange(10_000), total=10_000, seed=0).reshape(100, 100) // 1000
    counts = np.stack([np.bincount(shard, minlength=10) for shard in order])
    assert abs(counts.std() - 3) < 0.3
    correlation = np.corrcoef(np.arange(10_000), permuted(np.arange(10_000), total=10_000, seed=0))[0, 1]
    assert abs(correlation) < 0.04


def test_permutation_of_a_position_outside_is_refused():
    with pytest.raises(ValueError, match="positions must lie in 0 … 9"):
        permuted(np.array([10]), total=10, seed=0)


def test_every_image_is_in_one_task_under_one_key():
    plan = Plan(listing_of(103, has_classes=True), ShardSettings(images_per_shard=10))
    tasks = list(plan.tasks())
    assert [task.name for task in tasks] == [f"r2o-{n:06d}.tar" for n in range(11)]
    assert [len(task.images) for task in tasks] == [10] * 10 + [3]
    assert sorted(path for task in tasks for path in task.images) == [s.path for s in plan.listing.images]
    assert [task.first_key for task in tasks] == list(range(0, 110, 10))
    assert {name for task in tasks for name in task.classes} == {"cat"}


def test_fingerprint_follows_content_and_nothing_else():
    listing, settings = listing_of(5), ShardSettings()
    base = Plan(listing, settings).fingerprint
    moved = Listing(root=Path("/elsewhere"), images=listing.images, ignored=7, has_classes=False)
    assert Plan(moved, ShardSettings(workers=3, max_bad_fraction=0.5)).fingerprint == base
    assert Plan(listing, ShardSettings(seed=1)).fingerprint != base
    assert Plan(listing, ShardSettings(superpixels={"segments": 99})).fingerprint != base
    resized = (*listing.images[:-1], Source(listing.images[-1].path, 99))
    other = Listing(root=listing.root, images=resized, ignored=0, has_classes=False)
    assert Plan(other, settings).fingerprint != base
